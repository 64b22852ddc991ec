"The checks in .ci find what they are there for"
import importlib.util
import json
import os
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

def check(name):
    folder = Path(__file__).parent.parent/'.ci'
    spec = importlib.util.spec_from_file_location(name, folder/f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(folder)
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

def a_repository(folder, changelog='## [1.2.0] - 2027-01-31', cited='1.2.0'):
    setup = 'from setuptools import setup\nsetup(name="fer_perturb", version="1.2.0", packages=["fer_perturb"])'
    for name,text in {'fer_perturb/__init__.py': '__version__ = "1.2.0"', 'CHANGELOG.md': changelog, 'CITATION.cff': f'version: {cited}', 'setup.py': setup}.items():
        (folder/name).parent.mkdir(exist_ok=True)
        (folder/name).write_text(text)
    def git(*args): subprocess.run(['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *args], cwd=folder, check=True, capture_output=True)
    for args in (('init', '-q', '-b', 'main'), ('add', '.'), ('commit', '-qm', 'all')): git(*args)
    return git

def test_a_release_says_what_stands_in_its_way(tmp_path):
    release = check('release')
    git = a_repository(tmp_path)
    assert [*release.hindrances(tmp_path)]==[]
    git('tag', 'v1.2.0')
    git('checkout', '-qb', 'other')
    (tmp_path/'new').write_text('')
    found = [*release.hindrances(tmp_path)]
    assert len(found)==3 and 'not committed' in found[0] and "branch 'other'" in found[1] and 'v1.2.0 is released' in found[2]

@pytest.mark.parametrize('files, said', [
    (dict(changelog='## [1.1.0] - 2026-01-01'), 'no heading "## [1.2.0] - DATE"'), (dict(changelog='## [1.2.0] - unreleased'), "dates 1.2.0 'unreleased'"),
    (dict(cited='1.1.0'), 'CITATION.cff names another version than 1.2.0')])
def test_a_release_needs_its_texts(files, said, tmp_path):
    a_repository(tmp_path, **files)
    found, = check('release').hindrances(tmp_path)
    assert said in found

@pytest.mark.skipif(os.name=='nt', reason='files have no modes there')
def test_a_release_is_built_with_the_same_bytes_by_everyone(tmp_path, monkeypatch):
    release,repository = check('release'),tmp_path/'repository'
    repository.mkdir()
    a_repository(repository)
    mine = release.build(tmp_path/'mine', repository)
    time.sleep(1.1) # archives count seconds
    monkeypatch.setenv('TZ', 'Asia/Tokyo')
    old = os.umask(0o077)
    try: theirs = release.build(tmp_path/'theirs', repository)
    finally: os.umask(old)
    assert mine==theirs and [name.rpartition('.')[2] for name in mine]==['whl', 'gz']
    with tarfile.open(next((tmp_path/'mine').glob('*.gz'))) as packed: assert any(m.name.endswith('fer_perturb/__init__.py') for m in packed)

def test_licences_that_a_person_has_to_read_are_named(tmp_path, monkeypatch, capsys):
    dependencies = check('dependencies')
    def distribution(name, *lines):
        (tmp_path/f'{name}-1.0.dist-info').mkdir()
        (tmp_path/f'{name}-1.0.dist-info'/'METADATA').write_text('\n'.join(['Metadata-Version: 2.4', f'Name: {name}', 'Version: 1.0', *lines]))
    distribution('toy_a', 'License-Expression: MIT', 'Requires-Dist: toy-b[more]>=1', 'Requires-Dist: toy-none; extra == "no"', 'Requires-Dist: gone; sys_platform == "none"')
    distribution('toy_b', 'Classifier: License :: OSI Approved :: GNU General Public License v3 (GPLv3)', 'Requires-Dist: toy-a[no]; extra == "more"')
    distribution('toy_none', 'License: UNKNOWN', 'Requires-Dist: toy-either', 'Requires-Dist: toy-files', 'Requires-Dist: toy-shop')
    distribution('toy_either', 'License-Expression: GPL-2.0 OR MIT')
    distribution('toy_files', 'License: LGPL-3.0')
    distribution('toy_shop', 'License: a Proprietary licence')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(dependencies, 'root', tmp_path)
    (tmp_path/'settings.ini').write_text('[DEFAULT]\nrequirements = toy_a>=1\nmore_requirements = toy-nowhere\ndev_requirements = pytest\n')
    dependencies.main()
    said = capsys.readouterr().out
    assert 'Not installed here: toy-nowhere' in said and '6 distributions' in said
    assert said.partition('Read the licences of:\n')[2].splitlines()==[
        '- toy-b 1.0: copyleft (GNU General Public License v3 (GPLv3))', '- toy-files 1.0: copyleft for its own files (LGPL-3.0)',
        '- toy-none 1.0: none is stated', '- toy-shop 1.0: owned by a company (a Proprietary licence)']
