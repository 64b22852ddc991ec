"Trainings whose step can be recorded: what they do on a CPU, and on a GPU that is only pretended"
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import gpu
from fer_perturb.experiments import Results
from fer_perturb.forms import forms
from fer_perturb.graphs import GraphTraining, count_draws, train_together
from fer_perturb.material import Material, run_learner, run_maps
from fer_perturb.readers import save_faces
from fer_perturb.records import Place, read_json
from fer_perturb.runs import Run
from fer_perturb.toyfaces import draw_faces, toy_faces


def network():
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=4, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 7))

def training(faces, seed=0, form='plain', **kwargs):
    torch.manual_seed(seed)
    return GraphTraining(network(), faces, form, bs=32, seed=seed, **kwargs)

def finish(t):
    while t.advance(): pass
    return t

def weights(t): return torch.cat([p.detach().flatten() for p in t.network.parameters()])

def test_side_by_side_is_as_alone(faces):
    data,found = faces.part('Training'),{}
    make = [partial(training, data, seed, epochs=2) for seed in range(4)]
    assert sorted(train_together(make, lambda i, t: found.update({i: weights(t)}), slots=3))==[0, 1, 2, 3]
    for seed in range(4): assert torch.equal(found[seed], weights(finish(training(data, seed, epochs=2))))
    assert not torch.equal(found[0], found[1])

def test_after_the_deadline_nothing_begins(faces):
    data,found = faces.part('Training'),[]
    assert train_together([partial(training, data, epochs=1)], lambda *a: found.append(a), until=time.monotonic()-1)==[] and not found

def test_the_schedule_ends_where_the_training_ends(faces):
    t = finish(training(faces.part('Training'), epochs=3))
    assert int(t.done)==3*t.steps==len(t.schedule) and len(t.losses)==3

def test_small_images_come_first(faces):
    sizes = []
    t = training(faces.part('Training'), epochs=10)
    t.network.register_forward_pre_hook(lambda m, args: sizes.append(args[0].shape[-1]))
    finish(t)
    assert sizes==[36]*4*t.steps + [48]*6*t.steps

def test_predictions_leave_batch_norm_alone(faces):
    t = finish(training(faces.part('Training'), epochs=1))
    before = t.network[1].running_mean.clone()
    first,second = (t.logits(faces.images[:40], batch_size=n) for n in (40, 7))
    assert torch.equal(before, t.network[1].running_mean) and torch.allclose(first, second, atol=1e-5) and t.network.training

@pytest.mark.parametrize('form', [name for name,form in forms.items() if not form.twice])
def test_no_form_waits_for_the_gpu(form, monkeypatch):
    "Under `FakeTensorMode` a mix of devices raises, and so does everything that would have to wait for a value"
    monkeypatch.setattr(torch.cuda, 'Stream', lambda device: None)
    monkeypatch.setattr(torch, 'Generator', lambda device: SimpleNamespace(manual_seed=lambda seed: None))
    rows = count_draws(form, 4)
    monkeypatch.setattr('fer_perturb.graphs.count_draws', lambda *args: rows)
    monkeypatch.setattr('fer_perturb.graphs.one_cycle', lambda steps, lr: torch.zeros(steps, 2))
    monkeypatch.setattr(torch.autograd, 'grad', lambda loss, params: [p.detach() for p in params]) # a backward pass needs a real GPU
    class Faces(SimpleNamespace):
        def __len__(self): return len(self.images)
    with FakeTensorMode(allow_non_fake_inputs=False):
        data = Faces(images=torch.zeros(40, 48, 48, dtype=torch.uint8), labels=torch.zeros(40, dtype=torch.int64), vocab=tuple('abcdefg'))
        with torch.device('cuda'): net = network()
        net.to = lambda **kwargs: net # pretended weights cannot change their layout
        t = GraphTraining(net, data, form, torch.zeros(40, 48, 48, dtype=torch.uint8), 4, bs=32)
        for small in (True, False): t.one_step(small)
        assert all(p.device.type=='cuda' for p in t.params) and t.batch().images.device.type=='cuda'

def test_a_grid_of_recorded_steps_makes_what_its_runs_ask_for(tmp_path, monkeypatch):
    settings = dict(arch='test_resnet', epochs=1, bs=16, lr=.01, phase1_epochs=1)
    asked = [Run('plain', **settings), Run('own', **settings), Run('foreign', **settings, keep=.15), Run('own', **settings, maps='landmarks'), Run('own', **settings, maps='centre')]
    monkeypatch.setattr(gpu, 'runs_of', lambda args: asked)
    save_faces(toy_faces(70), tmp_path/'faces.npz')
    drawn = draw_faces(torch.arange(70)%7, 42)
    np.savez(tmp_path/'landmarks.npz', names=np.array(toy_faces(70).names), landmarks=drawn.landmarks.numpy())
    args = SimpleNamespace(data=tmp_path/'faces.npz', landmarks=tmp_path/'landmarks.npz', out=tmp_path/'out', slots=2, dry=False, seconds=600)
    assert gpu.grid(args)==dict(finished=5, networks=1, wanted=5)
    records = [read_json(Place(tmp_path/'out').record(r)) for r in asked]
    assert [r['name'] for r in records]==[r.name for r in asked] and records[0]['hidden'] is None
    areas = [r['hidden']['area'] for r in records[1:]]
    assert areas[0]==pytest.approx(.1, abs=.02) and areas[1]==pytest.approx(.05, abs=.01) and areas[3]==pytest.approx(.1, abs=.02)
    assert [r['figure_4'] is not None for r in records]==[False, True, True, False, True]
    found = Results(tmp_path/'out').arrays(asked[1])
    assert found['clusters'].shape==(3, 48, 48) and len(found['PublicTest/no cluster 3'])==7
    assert gpu.grid(args)==dict(finished=0, networks=0, wanted=0) # nothing twice

@pytest.mark.parametrize('change', [{}, dict(keep=.15), dict(feature='attention'), dict(refine=0), dict(one_map=True), dict(n_clusters=5)])
def test_recorded_runs_hide_by_the_maps_of_the_learner(change):
    material = Material(toy_faces(70), draw_faces(torch.arange(70)%7, 42).landmarks)
    run = Run('own', faces='toy 70', arch='test_resnet', bs=16, maps='centre', augment='none', **change)
    learn = run_learner(run, material, device='cpu')
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert torch.equal(run_maps(run, material)[0], learn.dls.train.data.column('clusters'))
