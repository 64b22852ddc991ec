"The machinery of `make bench`: turns, ratios, tables, and what happens where a library is missing"
from pathlib import Path

import pytest
import torch

@pytest.fixture(autouse=True)
def importable(monkeypatch): monkeypatch.syspath_prepend(str(Path(__file__).parent.parent))

def test_competitors_take_turns(monkeypatch):
    from benchmarks import common
    clock,turns = [0.],[]
    monkeypatch.setattr(common.time, 'perf_counter', lambda: clock[0])
    def competitor(name, seconds, items):
        def run():
            turns.append(name)
            clock[0] += seconds
            return items
        return run
    times = common.compare(dict(a=competitor('a', 1., None), b=competitor('b', 1., 4), c=competitor('c', .25, 1)), rounds=2, at_least=.5)
    assert ''.join(turns)=='abccabcc'
    assert times==dict(a=[1., 1.], b=[.25, .25], c=[.25, .25])

def test_ratios_are_formed_within_a_round():
    from benchmarks.common import ratio
    assert ratio([2., 30., 8.], [1., 10., 2.])==(3., 2., 4.)

def test_tables():
    from benchmarks.common import Goal, Spread, Table, cell, goals_table, render
    assert [cell(v) for v in (Spread(2., 1., 3.), Spread(2., 2., 2.), 12345.6, 25.34, 0.0712, 2e-5, 7, 'no')]==[
        '2.00 (1.00–3.00)', '2.00', '12,346', '25.3', '0.071', '2.0e-05', '7', 'no']
    table = Table('T', ('what', 'x'), [('long name', 1.5), ('b', Spread(2., 1., 3.))], 'A note.',
                  [Goal('fast', Spread(2., 1., 3.), at_least=2), Goal('small', Spread(2., 1., 3.), at_most=1.9)])
    assert render(table).splitlines()[2:]==['| what      | x                |', '| --------- | ---------------- |', '| long name | 1.50             |',
                                            '| b         | 2.00 (1.00–3.00) |', '', 'A note.']
    assert [row[1:2]+row[3:] for row in goals_table([table]).rows]==[('≥ 2', 'reached'), ('≤ 1.9', 'missed')]

def test_kmeans_rows(monkeypatch):
    from benchmarks import kmeans
    def broken(points, start): raise OSError('no such kernel')
    monkeypatch.setattr(kmeans, 'competitors', {n: kmeans.competitors[n] for n in ('scikit-learn, loop', 'ours, plain', 'naive torch, all images at once')}
                        | {'missing': (broken, 'no_such_library'), 'broken': (broken, 'torch')})
    points = torch.rand(3, 40, 3)
    table = kmeans.table(points, points[:,:3].clone(), rounds=1)
    rows = {row[0]: row[1:] for row in table.rows}
    assert 'fer_perturb[bench]' in rows['missing'][0] and rows['broken'][0]=='failed: OSError: no such kernel'
    assert rows['scikit-learn, loop'][2]==rows['ours, plain'][2]==rows['naive torch, all images at once'][2]
    assert any('inertia' in goal.what and goal.measured.high<1e-5 for goal in table.goals)

def test_other_libraries_do_the_same_steps():
    from benchmarks import kmeans
    points = torch.rand(2, 50, 3)
    start = points[:,:3].clone()
    wanted = kmeans.inertia(points, kmeans.naive_torch(points, start))
    for name,(run,module) in kmeans.competitors.items():
        if kmeans.available(module) and 'compiled' not in name: assert kmeans.inertia(points, run(points, start))==pytest.approx(wanted, rel=1e-4), name

def test_training_steps_train(faces):
    from benchmarks.training import Steps, face_loaders, with_precision
    from fer_perturb.learner import face_learner
    learn = with_precision(face_learner(face_loaders(faces), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48*48, 7))))
    step = Steps(learn)
    before = learn.model[1].weight.detach().clone()
    assert step()==128
    assert learn.training and not torch.equal(learn.model[1].weight, before)

def test_files_hold_the_same_faces(faces, tmp_path):
    from benchmarks.loader import epoch, fastai_loader, our_loader, torchvision_loader, write_files
    write_files(faces[:280], tmp_path)
    for augment in (True, False):
        loaders = our_loader(faces[:280], augment),fastai_loader(tmp_path, augment, 0),torchvision_loader(tmp_path, augment, 0)
        assert [epoch(loader) for loader in loaders]==[128]*3
        batches = [next(iter(loader))[0] for loader in loaders]
        assert all(batch.shape==(128, 1, 48, 48) and batch.dtype==torch.float32 for batch in batches)
    whole = faces[:280].part('Training').images.float().mean()/255
    assert all(abs(batch.mean()-whole)<.02 and 0<=batch.min()<batch.max()<=1 for batch in batches)

def test_one_topic_that_breaks_does_not_stop_the_others(monkeypatch, tmp_path, capsys):
    from benchmarks import growth, imports, run
    def broken(settings): raise OSError('disk full')
    monkeypatch.setattr(imports, 'tables', broken)
    monkeypatch.setattr(growth, 'tables', lambda settings: [run.machine()])
    with pytest.raises(SystemExit, match='imports failed: OSError: disk full'): run.main(['--only', 'imports', 'growth', '--quick', '--out', str(tmp_path/'r.md')])
    text = (tmp_path/'r.md').read_text()
    assert '**imports failed: OSError: disk full**' in text and text.count('### Machine')==2 and str(Path.home()) not in text

def test_only_a_whole_run_writes_the_results():
    from benchmarks.run import parse
    assert parse([]).out.name=='results.md'
    assert parse(['--quick']).out is None and parse(['--only', 'loader']).out is None and parse(['--quick', '--out', 'x.md']).out==Path('x.md')

def test_growth_measures_every_job():
    from benchmarks import growth
    for name in growth.jobs:
        found = growth.measure(name, .1)
        assert found['seconds']>0 and found['beyond']>=0, name

def test_reclustering_is_compared_with_a_training(monkeypatch):
    from benchmarks import common, epoch
    monkeypatch.setattr(epoch, 'backbones', {'tiny': lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48*48, 7))})
    table = epoch.recluster_table(common.Settings(quick=True))
    assert [row[0] for row in table.rows]==['re-clustering', 'training tiny'] and table.goals[0].measured.median>0

def test_minutes_to_an_accuracy(tmp_path):
    from benchmarks import accuracy
    (tmp_path/'fastai-42.csv').write_text('1,10.0,9.0,40.0\n2,20.0,19.0,63.0\n')
    (tmp_path/'ours-42.csv').write_text('1,2.0,1.5,50.0\n2,4.0,3.0,64.5\n3,6.0,4.5,64.2\n')
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in accuracy.table(tmp_path, 64).splitlines()]
    assert rows[2]==['fastai', '2', '63.0', 'not in 20', 'not in 19'] and rows[3]==['ours', '3', '64.5', '4.00', '3.00']

def test_a_training_is_clocked(faces, tmp_path, monkeypatch):
    from benchmarks import accuracy,training
    monkeypatch.setattr(accuracy, 'recipes', {'ours': (lambda data, out: training.quick_learner(faces, linear()), lambda learn, n: learn.fit_quick(n, .1), 2)})
    accuracy.train('ours', None, tmp_path)
    rows = [[float(cell) for cell in line.split(',')] for line in (tmp_path/'ours-42.csv').read_text().splitlines()]
    assert [row[0] for row in rows]==[1, 2] and 0<rows[0][1]<rows[1][1] and 0<rows[0][2]<rows[1][2] and all(0<=row[3]<=100 for row in rows)

def linear(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48*48, 7))

def test_precisions_differ_by_rounding_alone(faces, monkeypatch):
    from benchmarks import precision, training
    monkeypatch.setattr(precision, 'quick_learner', lambda data, device: training.quick_learner(data, linear(), device))
    loss,again,rounded = (precision.train(faces, name, 1, 42)[1] for name in ('float32', 'float32', 'bfloat16'))
    assert loss==again and 0<abs(loss-rounded)<.05*loss

def test_what_has_been_trained_is_not_trained_again(faces, tmp_path):
    from benchmarks import table1, training
    def trained(name, fit, **kwargs): return table1.trained(lambda: training.quick_learner(faces, linear()), fit, tmp_path/name, 0, **kwargs).model
    def refused(learn): raise AssertionError('trained again')
    first = trained('net.pth', lambda learn: learn.fit(1, .1))
    again = trained('net.pth', refused)
    further = trained('further.pth', lambda learn: None, start=tmp_path/'net.pth')
    assert torch.equal(further[1].weight.cpu(), first[1].weight.cpu())
    assert torch.equal(again[1].weight.cpu(), first[1].weight.cpu()) and {p.name for p in tmp_path.iterdir()}=={'net.pth', 'further.pth'}

def test_table1_compares_the_same_faces(faces):
    from benchmarks import table1, training
    from fer_perturb.masks import maskfer
    from fer_perturb.toyfaces import draw_faces
    masked = maskfer(faces, draw_faces(torch.arange(len(faces))%7).landmarks)
    text = table1.report(dict(clean=faces, ours=masked, reference=masked), {'net': training.quick_learner(faces, linear())}, 'PublicTest')
    assert 'Table 1: ours, minus clean' in text and "on our masks minus on the reference's +0.0 points" in text

def test_backbones_by_name():
    from benchmarks.backbones import backbone
    for name,side in {'slim_resnet18': 24, 'slim_resnet18:4': 12}.items():
        model,found = backbone(name, 5),[]
        model.layer1.register_forward_hook(lambda module, inputs, maps: found.append(maps.shape[-1]))
        assert model(torch.rand(1, 1, 48, 48)).shape==(1, 5) and found==[side]

def test_the_index_of_scripts_is_whole(capsys):
    from benchmarks.__main__ import main
    main()
    lines = dict(line.split('  ', 1) for line in capsys.readouterr().out.splitlines()[2:])
    scripts = {p.stem for p in Path(__file__).parent.parent.glob('benchmarks/*.py')} - {'__init__', '__main__', 'common'}
    assert {name.strip() for name in lines}==scripts
    assert all(len(text.split())>=4 and 'python -m' not in text for text in lines.values())
