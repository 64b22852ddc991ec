"The checks in .ci find what they are there for"
import importlib.util
import json
from pathlib import Path

import pytest

def check(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent.parent/'.ci'/f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

@pytest.mark.parametrize('line, said', [
    ('from fer_perturb.data import x', None), ('from .data import x', None), ('import fer_perturb.data', None), ('from fer_perturb import __version__', None),
    ('from .learner import x', '40_kmeans imports from 42_learner'), ('def f():\n    from fer_perturb import data, learner', 'line 2: 40_kmeans imports from 42_learner'),
    ('import fer_perturb.learner as l', 'imports from 42_learner'), ('from fer_perturb.learner import x', 'imports from 42_learner'),
    ('from .kmeans import x', 'imports from 40_kmeans'), ('from .gone import x', 'no such module')])
def test_imports_that_run_upwards_are_found(line, said, tmp_path, monkeypatch):
    floors = check('check_floors')
    monkeypatch.setattr(floors, 'root', tmp_path)
    for folder in ('nbs', 'fer_perturb'): (tmp_path/folder).mkdir()
    for name in ('10_data', '40_kmeans', '42_learner'):
        cells = [dict(cell_type='code', source=[f'#| default_exp {name[3:]}'])]
        (tmp_path/'nbs'/f'{name}.ipynb').write_text(json.dumps(dict(cells=cells)))
        (tmp_path/'fer_perturb'/f'{name[3:]}.py').write_text(line if name=='40_kmeans' else '')
    if said is None: return floors.main()
    with pytest.raises(SystemExit, match=said): floors.main()

def test_modules_without_a_notebook_are_found(tmp_path, monkeypatch):
    floors = check('check_floors')
    monkeypatch.setattr(floors, 'root', tmp_path)
    for folder in ('nbs', 'fer_perturb'): (tmp_path/folder).mkdir()
    (tmp_path/'fer_perturb'/'stale.py').write_text('')
    with pytest.raises(SystemExit, match='no notebook exports this module'): floors.main()
