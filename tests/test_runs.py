"Grids of trainings: killed at any moment they end with the same bits, and no two processes train the same run"
import json
import multiprocessing
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fer_perturb import experiments
from fer_perturb.checkpoint import Claim, process_start, read_checkpoint, write_checkpoint
from fer_perturb.experiments import Results, open_private, run_grid, train_runs
from fer_perturb.findings import claim_table, comparison, paper_figure, paper_table
from fer_perturb.forms import Form, forms
from fer_perturb.material import Material
from fer_perturb.records import Place, read_json, runs_table
from fer_perturb.runs import Run, find_grid, grids
from fer_perturb.toyfaces import draw_faces, toy_faces

small = dict(faces='toy 70', epochs=2, arch='test_resnet', optimizer='adamw', bs=16, augment='quick', phase1_epochs=1)
tiny_runs = [Run('plain', **small), Run('own', **small).phase1, Run('own', **small | dict(epochs=3)), Run('cutmix_own', maps='self', **small)]

def toy_material(faces='toy 70'):
    n = int(faces.split()[1])
    material = Material(toy_faces(n), draw_faces(torch.arange(n)%7, 42).landmarks)
    material.made = dict(clean=material.faces.images[material.test], masks=material.covered('surgical')) # two of the sets: all take longer than the training
    return material

def work(results, folder, log, runs=tiny_runs):
    "What a process does: train, and note each epoch"
    torch.set_num_threads(1)
    def note(line):
        with open(log, 'a') as f: f.write(f'{os.getpid()} {line}\n')
    material = toy_material()
    assert train_runs(runs, lambda faces: material, Place(Path(results), Path(folder)), device='cpu', line=note, wait=.05)==[]

@pytest.fixture(scope='module')
def processes():
    "Processes that begin with everything imported"
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['test_runs'])
    return context

@pytest.fixture(scope='module')
def shared(tmp_path_factory): return tmp_path_factory.mktemp('runs')

@pytest.fixture(autouse=True)
def one_cache(shared, monkeypatch): monkeypatch.setenv('FER_PERTURB_CACHE', str(shared/'cache'))

def start(processes, folder, runs=tiny_runs):
    folder.mkdir(exist_ok=True)
    p = processes.Process(target=work, args=(folder/'results', folder/'work', folder/'log', runs))
    p.start()
    return p

@pytest.fixture(scope='module')
def undisturbed(processes, shared):
    "The grid in one go, in a process of its own; and how long that took"
    os.environ['FER_PERTURB_CACHE'] = str(shared/'cache')
    begin = time.time()
    p = start(processes, shared/'whole')
    p.join()
    assert p.exitcode==0
    return shared/'whole',time.time()-begin

def outcome(folder, runs=tiny_runs):
    "Everything that tables are made of"
    place,found = Place(folder/'results', folder/'work'),{}
    for run in runs:
        record = read_json(place.record(run))
        for name in ('minutes', 'date'): record.pop(name)
        with np.load(place.record(run).with_suffix('.npz')) as z: found[run.name] = record,{k: z[k].tobytes() for k in z}
    return found

def test_killed_at_ten_random_moments(processes, undisturbed, shared):
    whole,seconds = undisturbed
    rng,folder = random.Random(0),shared/'killed'
    for _ in range(10):
        p = start(processes, folder)
        time.sleep(rng.uniform(.05, .5)*seconds)
        p.kill() # nothing happens to one that has finished already
        p.join()
    p = start(processes, folder)
    p.join()
    assert p.exitcode==0 and outcome(folder)==outcome(whole)

def test_two_processes_share_a_grid(processes, undisturbed, shared):
    folder = shared/'two'
    both = [start(processes, folder) for _ in range(2)]
    for p in both: p.join()
    lines = [line.split() for line in (folder/'log').read_text().splitlines()]
    epochs = [(line[1], line[line.index('epoch')+1]) for line in lines]
    assert len(set(epochs))==len(epochs)==sum(r.epochs for r in tiny_runs)
    assert len({line[0] for line in lines})==2 and outcome(folder)==outcome(undisturbed[0])

def test_a_claim_ends_with_its_owner(tmp_path):
    path = tmp_path/'claim'
    def leave(age=0., **owner):
        path.write_text(json.dumps(dict(host=platform.node(), pid=os.getpid(), start=process_start(os.getpid())) | owner))
        os.utime(path, (time.time()-age,)*2)
    def taken():
        claim = Claim(path)
        if claim.take(): claim.release(); return True
        return False
    leave(); assert not taken()
    leave(age=1000); assert not taken() # a process that is stopped is alive
    leave(start='1'); assert taken() # its number belongs to another process now
    dead = subprocess.Popen([sys.executable, '-c', ''])
    dead.wait()
    leave(pid=dead.pid); assert taken()
    leave(host='elsewhere', age=100); assert not taken()
    leave(host='elsewhere', age=130); assert taken()
    path.write_text('{"host": "el'); os.utime(path, (time.time()-2,)*2); assert taken()

def test_what_is_half_written_is_not_read(tmp_path):
    place,run = Place(tmp_path/'r', tmp_path/'w'),tiny_runs[0]
    path = place.record(run)
    path.parent.mkdir(parents=True)
    path.with_name(f'.{path.name}.1.part').write_text('{"name"')
    assert not place.finished(run) and Results(place.results).record(run) is None
    path.write_text('{"name"')
    assert read_json(path) is None and not place.finished(run) # no predictions beside it
    write_checkpoint(tmp_path/'c.pt', dict(epoch=1))
    whole = (tmp_path/'c.pt').read_bytes()
    for n in (0, 10, len(whole)//2, len(whole)-1):
        (tmp_path/'c.pt').write_bytes(whole[:n])
        with pytest.warns(UserWarning, match='no whole checkpoint'): assert read_checkpoint(tmp_path/'c.pt') is None

def test_loading_executes_nothing(tmp_path):
    class Bad:
        def __reduce__(self): return (os.system, (f'touch {tmp_path/"executed"}',))
    torch.save(dict(epoch=Bad()), tmp_path/'c.pt')
    with pytest.warns(UserWarning): assert read_checkpoint(tmp_path/'c.pt') is None
    assert not (tmp_path/'executed').exists()

def test_names_depend_on_what_matters():
    assert Run().name==Run(n_clusters=5, maps='self').name!=Run('own').name
    assert len({Run('own', **{f: v}).name for f,v in dict(n_clusters=5, maps='self', keep=.5, seed=1, phase1_epochs=2).items()})==5
    assert Run('own', maps='self', phase1_epochs=2).name==Run('own', maps='self').name
    assert len({r.name for r in find_grid('forms')})==len(find_grid('forms'))

def test_every_grid_is_in_order():
    "Each form exists, and attention networks come before what needs them"
    for name in grids:
        runs = find_grid(name)
        places = {r.name: i for i,r in enumerate(runs)}
        assert all(places[r.phase1.name]<places[r.name] for r in runs if r.phase1), name

def test_unfair_comparisons_are_errors(monkeypatch, undisturbed):
    monkeypatch.setitem(grids, 'unfair', lambda: [tiny_runs[0], tiny_runs[2]])
    with pytest.raises(ValueError, match='differ in epochs'): comparison('unfair', 'plain', results=Results(undisturbed[0]/'results'))

def test_private_test_is_sealed(monkeypatch, undisturbed):
    place,run = Place(undisturbed[0]/'results', undisturbed[0]/'work'),tiny_runs[0]
    monkeypatch.setitem(grids, 'tiny', lambda: [run])
    assert not any('Private' in k for k in Results(place.results).arrays(run)) and 'PrivateTest' not in read_json(place.record(run))['scores']
    with pytest.raises(ValueError, match='--final'): Results(place.results).answers(run, usage='PrivateTest')
    before = place.record(run).read_bytes(),place.record(run).with_suffix('.npz').read_bytes()
    assert open_private('tiny', place)==1==open_private('tiny', place)
    uses = [json.loads(line) for line in (place.results/'final.jsonl').read_text().splitlines()]
    assert len(uses)==2 and all(u['grid']=='tiny' and u['runs']==[run.name] and u['date'] for u in uses)
    labels = Results(place.results).faces(run, 'PrivateTest')[0]
    right = (Results(place.results).answers(run, usage='PrivateTest')==labels).float().mean().item()
    assert read_json(place.record(run))['scores']['PrivateTest']['clean']['accuracy']==pytest.approx(right)
    for path,old in zip((place.record(run), place.record(run).with_suffix('.npz')), before): path.write_bytes(old)

def test_results_of_another_machine_leave_nothing_to_train(tmp_path, monkeypatch, undisturbed, capsys):
    "The attention network stays where it was trained; it is trained here once a run needs it"
    monkeypatch.setitem(grids, 'tiny', lambda: [tiny_runs[0], tiny_runs[2]])
    place = Place(tmp_path/'results', tmp_path/'work')
    shutil.copytree(undisturbed[0]/'results', place.results)
    def material(*_, **__): raise AssertionError('nothing has to be trained')
    monkeypatch.setattr(experiments, 'find_material', material)
    assert run_grid('tiny', results=place.results, folder=place.folder, final=True)==0
    assert runs_table('tiny', place).state.tolist()==['finished']*3
    assert '3 of 3 runs are finished' in (said := capsys.readouterr().out) and 'PrivateTest of 2 runs is open' in said
    place.record(tiny_runs[2]).unlink()
    assert runs_table('tiny', place).state.tolist()==['finished', 'left', 'left'] and place.left(tiny_runs[:3])==tiny_runs[1:3]

def test_tables_and_figures_from_results(monkeypatch, undisturbed):
    monkeypatch.setitem(grids, 'backbones', lambda: [tiny_runs[0], tiny_runs[3]])
    results = Results(undisturbed[0]/'results')
    assert paper_table(1, results).columns[-1]=='all' and list(paper_table(2, results, form='cutmix_own')['baseline'].columns)==['accuracy %', '95 % interval', 'macro F1']
    for number in (1, 3): assert paper_figure(number, results).axes
    assert claim_table(results, 'backbones').shape==(1, 3)
    with pytest.raises(FileNotFoundError, match='fer-perturb run clusters'): paper_figure(5, results)
    with pytest.raises(ValueError, match='choose one of 1, 3, 4'): paper_figure(2, results)

@pytest.mark.parametrize('form', ['stack', 'views', 'twice_own', 'own_blur', 'cutmix_own'])
def test_every_kind_of_form_ends_in_a_record(form, tmp_path):
    "Stacks have no saliency, views are more than an image, a blurred image is hidden where nothing is gray"
    run,place = Run(form, maps='centre', **small | dict(epochs=1)),Place(tmp_path/'results', tmp_path/'work')
    assert train_runs([run], lambda faces: toy_material(), place, device='cpu')==[]
    record,arrays = read_json(place.record(run)),Results(place.results).arrays(run)
    assert record['scores']['PublicTest']['clean']['images']==7 and ('saliency clean' in arrays)==('clusters' in arrays)==(form!='stack')
    if form in ('twice_own', 'own_blur'): assert record['hidden']['area']==pytest.approx(.1, abs=.02)

def test_a_failure_does_not_stop_the_others(tmp_path, monkeypatch):
    def broken(batch): raise RuntimeError('no such pixel')
    monkeypatch.setitem(forms, 'broken', Form(broken, 'broken', maps=False))
    lines,place,material = [],Place(tmp_path/'r', tmp_path/'w'),toy_material()
    runs = [Run('broken', **small | dict(epochs=1)), Run('erase', **small | dict(epochs=1))]
    assert train_runs(runs, lambda faces: material, place, device='cpu', line=lines.append)==[runs[0].name]
    assert 'no such pixel' in ' '.join(lines) and place.finished(runs[1]) and 'no such pixel' in (place.work(runs[0])/'error.txt').read_text()

def test_the_command_stops_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(grids, 'tiny', lambda: tiny_runs[:1])
    options = dict(device='cpu', results=tmp_path/'r', folder=tmp_path/'w')
    pressed = []
    real = experiments.write_json
    def press(path, value):
        real(path, value)
        if path.name=='progress.json' and not pressed: pressed.append(1); os.kill(os.getpid(), signal.SIGINT)
    monkeypatch.setattr(experiments, 'write_json', press)
    assert run_grid('tiny', **options)==130
    said = capsys.readouterr().out
    assert 'epoch 1/2' in said and 'epoch 2/2' not in said and 'goes on from here' in said
    assert runs_table('tiny', Place(tmp_path/'r', tmp_path/'w')).state.tolist()==['begun']
    assert run_grid('tiny', **options)==0
    said = capsys.readouterr().out
    assert 'epoch 1/2' not in said and 'epoch 2/2' in said and '1 of 1 runs are finished' in said

def test_a_grid_leaves_bars_and_threads_as_they_were(tmp_path, monkeypatch):
    "A run keeps the threads that it was begun with; a later run and the caller have their own"
    monkeypatch.setitem(grids, 'tiny', lambda: tiny_runs[:1])
    monkeypatch.setattr(experiments, 'find_material', lambda *args, **options: toy_material())
    monkeypatch.setattr(experiments.fastprogress, 'NO_BAR', False)
    place,threads,seen = Place(tmp_path/'r', tmp_path/'w'),torch.get_num_threads(),[]
    (place.work(tiny_runs[0])).mkdir(parents=True)
    begun = experiments.begin(place.work(tiny_runs[0]))
    torch.set_num_threads(threads)
    experiments.write_json(place.work(tiny_runs[0])/'setup.json', begun | dict(threads=threads + 1))
    monkeypatch.setattr(experiments, 'learner_outcome', lambda *args: seen.append(torch.get_num_threads()) or 1/0)
    assert run_grid('tiny', results=place.results, folder=place.folder, device='cpu')==1 and seen==[threads + 1]
    assert torch.get_num_threads()==threads and experiments.fastprogress.NO_BAR is False

def test_a_run_gives_random_states_back(tmp_path, states_kept):
    place = Place(tmp_path/'r', tmp_path/'w')
    experiments.train_run(tiny_runs[0], toy_material(), place, device='cpu', line=list)
    experiments.trained_learner(tiny_runs[0], toy_material(), place)

def test_a_thread_that_is_not_the_main_one_trains_without_signals():
    "Python hands signals to the main thread only; a notebook, or a page, may train in another one"
    from concurrent.futures import ThreadPoolExecutor
    def enter():
        with experiments.Stop(hours=1) as stop: return stop()
    with ThreadPoolExecutor(1) as pool: assert pool.submit(enter).result() is False

def test_no_hours_are_no_time(): assert experiments.Stop(hours=0)() and not experiments.Stop(hours=1)() and not experiments.Stop()()
