"The recipes of CONTRIBUTING.md: each adds a toy one, by the very code of the text"
import importlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch

text = (Path(__file__).resolve().parent.parent/'CONTRIBUTING.md').read_text(encoding='utf-8')
recipes = {title.lower(): tuple(re.search(r'```python\n# nbs/\d+_(\w+)\.ipynb\n(.*?)```', body, re.S).groups())
           for title,body in re.findall(r'^### ([^\n]+)\n(.*?)(?=^##)', text, re.M|re.S)}

@pytest.fixture
def follow(monkeypatch):
    "Run a recipe in a module, for the time of a test"
    def run(name):
        module_name,code = recipes[name]
        module = importlib.import_module(f'fer_perturb.{module_name}')
        kept = {k: dict(v) for k,v in vars(module).items() if isinstance(v, dict) and not k.startswith('__')}
        undo.append((module, kept))
        exec(compile(code, f'CONTRIBUTING.md, {name}', 'exec'), vars(module))
        return module
    undo = []
    yield run
    for module,kept in reversed(undo):
        for name,value in kept.items():
            table = vars(module)[name]
            table.clear()
            table.update(value)

def test_all_recipes_are_tried(): assert set(recipes)=={'a backbone', 'a perturbation, or another form', 'a saliency method', 'a reader', 'an experiment'}

def test_backbone(follow, few):
    from fer_perturb.learner import attention_learner
    backbones = follow('a backbone')
    assert 'tiny_resnet18' in backbones.backbone_names()
    learn = attention_learner(few, 'tiny_resnet18')
    assert learn.model(torch.rand(2, 1, 48, 48)).shape==(2, 7) and sum(p.numel() for p in learn.model.parameters())<200_000

def test_form(follow):
    forms = follow('a perturbation, or another form')
    batch = forms.Batch(torch.ones(400, 1, 6, 6))
    forms.find_form('left').apply(batch)
    hidden = batch.images[:,0,0,0]==.5
    assert 140<hidden.sum()<260 and (batch.images[hidden][...,:3]==.5).all() and (batch.images[...,3:]==1).all() and (batch.images[~hidden]==1).all()

def test_saliency(follow, few, faces):
    from fer_perturb.learner import attention_learner
    saliency = follow('a saliency method')
    maps = saliency.saliency_maps(attention_learner(few), faces.images[:4,None], 'first_gate')
    assert maps.shape==(4, 48, 48) and maps.dtype==torch.uint8 and (maps.flatten(1).amax(1)==255).all()

def test_reader(follow, tmp_path, faces, capsys):
    readers = follow('a reader')
    np.savez(tmp_path/'some.npz', images=faces.images.numpy(), labels=faces.labels.numpy(), vocab=np.array(faces.vocab))
    data = readers.from_arrays(tmp_path/'some.npz')
    assert torch.equal(data.images, faces.images) and tuple(data.vocab)==tuple(faces.vocab) and len(data.part('PublicTest'))
    assert 'some.npz: 420 images' in capsys.readouterr().out

def test_experiment(follow, tmp_path):
    from fer_perturb.experiments import Results, train_runs
    from fer_perturb.findings import comparison
    from fer_perturb.material import find_material
    from fer_perturb.records import Place
    runs = follow('an experiment')
    place,material = Place(tmp_path/'results', tmp_path/'work'),find_material('toy 70')
    assert train_runs(runs.find_grid('toy_patch'), lambda faces: material, place, device='cpu', line=lambda text: None)==[]
    table = comparison('toy_patch', results=Results(place.results), sets=('clean',))
    assert list(table.index)==['plain', 'patch'] and (table.seeds==2).all()
