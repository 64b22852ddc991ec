"Killed, full, read-only, torn, foreign: a training goes on with the same bits, or a sentence says why not and the last good checkpoint stays"
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fastai.vision.all import Callback, set_seed
from torch import nn

from fer_perturb.learner import face_learner
from fer_perturb.loaders import face_block

fork = pytest.mark.skipif(not hasattr(os, 'fork'), reason='processes are forked')

@fork
def test_killed_trainings_and_readings_go_on():
    "In a process of its own: torch trains in a fork only of a process that has not trained with a GPU, not even with a pretended one"
    code = 'from benchmarks import survive; print(*survive.trainings(2, seed=5, epochs=2), *survive.readings(2, seed=5, n=700))'
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    trained,tries,read,openings = map(int, done.stdout.split()[-4:] or [0]*4)
    assert trained==tries>=2 and read==openings>=2, done.stderr


def learner(faces, width=4, bs=16):
    set_seed(1)
    model = nn.Sequential(nn.Conv2d(1, width, 3, stride=4), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(.2), nn.Linear(16*width, 7))
    return face_learner(face_block().dataloaders(faces[:105], bs=bs, device='cpu'), model)

recipes = dict(quick=lambda l, n, **k: l.fit_quick(n, **k), paper=lambda l, n, **k: l.fit_paper(n, **k), one_cycle=lambda l, n, **k: l.fit_one_cycle(n, .01, **k))

def fit(learn, recipe='quick', n=3, **kwargs):
    with learn.no_bar(), learn.no_logging(): recipes[recipe](learn, n, **kwargs)
    return [t.clone() for t in learn.model.state_dict().values()]

class End(Callback):
    order = 2000
    def after_epoch(self):
        if self.epoch==1: raise KeyboardInterrupt

@pytest.mark.parametrize('recipe', recipes)
def test_every_recipe_goes_on(faces, tmp_path, recipe):
    whole = fit(learner(faces), recipe)
    with pytest.raises(KeyboardInterrupt): fit(learner(faces), recipe, checkpoint=tmp_path/'a', cbs=[End()])
    begun = []
    class Begun(Callback):
        def before_train(self): begun.append(self.epoch)
    again = fit(learner(faces), recipe, checkpoint=tmp_path/'a', resume=True, cbs=[Begun()])
    assert begun==[2] and all(torch.equal(a, b) for a,b in zip(whole, again))
    begun.clear()
    fit(learner(faces), recipe, checkpoint=tmp_path/'a', cbs=[Begun()]) # not asked to resume
    assert begun==[0, 1, 2]

def kept(faces, tmp_path):
    "A folder with a good checkpoint of one epoch, and its bytes"
    with pytest.raises(KeyboardInterrupt): fit(learner(faces), checkpoint=tmp_path/'a', cbs=[End()])
    return tmp_path/'a',(tmp_path/'a'/'training.pt').read_bytes()

@pytest.mark.parametrize('make, n, recipe, match', [
    (dict(width=5), 3, 'quick', 'another network or recipe'), (dict(bs=8), 3, 'quick', r'another training \(batch 16, not 8\)'),
    ({}, 4, 'quick', 'training of 3 epochs, not 4'), ({}, 3, 'paper', r'another training \(optimizer Muon, not SGD\)')])
def test_a_foreign_checkpoint_is_refused_and_stays(faces, tmp_path, make, n, recipe, match):
    folder,good = kept(faces, tmp_path)
    with pytest.raises(ValueError, match=match): fit(learner(faces, **make), recipe, n, checkpoint=folder, resume=True)
    assert (folder/'training.pt').read_bytes()==good

@pytest.mark.parametrize('damage', [lambda b: b[:len(b)//2], lambda b: b'', lambda b: b'text', lambda b: b[:-300]+bytes(300), lambda b: b[:3000]+bytes([b[3000]^1])+b[3001:],
                                    lambda b: b[:len(b)//3]+bytes([b[len(b)//3]^64])+b[len(b)//3+1:]])
def test_a_damaged_checkpoint_is_refused_and_stays(faces, tmp_path, damage):
    folder,good = kept(faces, tmp_path)
    (folder/'training.pt').write_bytes(damage(good))
    with pytest.raises(ValueError, match='is damaged, or no checkpoint'): fit(learner(faces), checkpoint=folder, resume=True)
    assert (folder/'training.pt').read_bytes()==damage(good)

@pytest.mark.parametrize('content', [[1, 2], {'weight': torch.ones(2)}, torch.ones(3), {'epoch': 1, 'n_epoch': 3, 'model': {}, 'opt': {}, 'random': {}, 'callbacks': {}, 'scaler': None}])
def test_another_file_is_no_checkpoint(faces, tmp_path, content):
    (tmp_path/'a').mkdir()
    torch.save(content, tmp_path/'a'/'training.pt')
    with pytest.raises(ValueError, match='no checkpoint|holds no training|another network'): fit(learner(faces), checkpoint=tmp_path/'a', resume=True)

def test_a_checkpoint_executes_nothing(faces, tmp_path):
    class Evil:
        def __reduce__(self): return (os.mkdir, (str(tmp_path/'evil'),))
    (tmp_path/'a').mkdir()
    torch.save(Evil(), tmp_path/'a'/'training.pt')
    with pytest.raises(ValueError, match='no checkpoint'): fit(learner(faces), checkpoint=tmp_path/'a', resume=True)
    assert not (tmp_path/'evil').exists()

@pytest.mark.skipif(not hasattr(signal, 'SIGXFSZ'), reason='the size of files is limited')
def test_a_full_disk(faces, tmp_path):
    import resource
    folder,good = kept(faces, tmp_path)
    limits,handler = resource.getrlimit(resource.RLIMIT_FSIZE),signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(good)//2, limits[1]))
    try:
        with pytest.raises(ValueError, match='cannot be written.*the one after epoch 2 stays'): fit(learner(faces), checkpoint=folder, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (folder/'training.pt').read_bytes()==good and [p.name for p in folder.iterdir()]==['training.pt']
    assert all(torch.equal(a, b) for a,b in zip(fit(learner(faces), checkpoint=folder, resume=True), fit(learner(faces))))

def test_a_folder_that_cannot_be_written_to_is_said_before_the_first_epoch(faces, tmp_path, monkeypatch):
    (tmp_path/'file').write_text('')
    epochs = []
    class Count(Callback):
        def before_epoch(self): epochs.append(1)
    with pytest.raises(ValueError, match='cannot be written to'): fit(learner(faces), checkpoint=tmp_path/'file', cbs=[Count()])
    def refuse(*args): raise PermissionError(30, 'Read-only file system')
    monkeypatch.setattr(os, 'replace', refuse)
    with pytest.raises(ValueError, match='cannot be written to .Read-only'): fit(learner(faces), checkpoint=tmp_path/'b', cbs=[Count()])
    assert not epochs

def test_resume_needs_a_folder(faces):
    with pytest.raises(ValueError, match='give checkpoint=FOLDER'): fit(learner(faces), resume=True)
