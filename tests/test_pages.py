"Pages that start alone, and the checks of the website: the scripts in .ci, on a repository of three small pages"
import importlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

root = Path(__file__).resolve().parent.parent

@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(root/'.ci'))
    return importlib.import_module

def cell(kind, text, **more):
    code = dict(execution_count=None, outputs=[]) if kind=='code' else {}
    return dict(cell_type=kind, id=f'c{abs(hash(text))}', metadata={}, source=text.splitlines(True)) | code | more

def write(path, *cells):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5), sort_keys=True, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')

def sources(path): return [''.join(c['source']) for c in json.loads(path.read_text(encoding='utf-8'))['cells']]

def set_url(repo, url):
    (repo/'settings.ini').write_text(f'[DEFAULT]\nrequirements = torch>=2\nonnx_requirements = torch>=3 onnx>=1 onnxruntime>=1\nmasks_requirements = dlib-bin>=19\ngit_url = {url}\n', encoding='utf-8')

@pytest.fixture
def repo(tmp_path):
    set_url(tmp_path, '')
    (tmp_path/'_quarto.yml').write_text('website: {sidebar: {contents: [index.ipynb, {section: Course, contents: [tutorials/01_first.ipynb]}, 10_data.ipynb]}}')
    write(tmp_path/'nbs'/'index.ipynb', cell('markdown', '# A package\n\n> What it is'), cell('code', 'print(1)'))
    write(tmp_path/'nbs'/'tutorials'/'01_first.ipynb', cell('markdown', '# First steps'), cell('code', '!ls\nimport dlib'))
    write(tmp_path/'nbs'/'10_data.ipynb', cell('markdown', '# Data\n\n> Faces'), cell('code', '#| default_exp data'),
          cell('code', '#| export\ndef f():\n    import onnx'), cell('code', 'import torch'), cell('code', '#| hide\nimport nbdev; nbdev.nbdev_export()'))
    return tmp_path

def refresh(pages, repo):
    stale = list(pages.stale_pages(repo))
    for path,text in stale: path.write_text(text, encoding='utf-8')
    return [path.name for path,_ in stale]

def test_pages_are_written_once(script, repo):
    pages = script('pages')
    assert refresh(pages, repo)==['index.ipynb', '01_first.ipynb', '10_data.ipynb'] and refresh(pages, repo)==[]
    data = sources(repo/'nbs'/'10_data.ipynb')
    assert data[0].startswith('# Data') and pages.install_title in data[1] and 'nbdev_export()' in data[-1] and len(data)==7
    assert sum('nbdev_export()' in s for s in data)==1
    assert 'nbdev' not in ''.join(sources(repo/'nbs'/'index.ipynb'))

def test_each_page_leads_to_the_next(script, repo):
    refresh(script('pages'), repo)
    assert sources(repo/'nbs'/'index.ipynb')[-1]=='**Next:** [First steps](tutorials/01_first.ipynb)'
    assert sources(repo/'nbs'/'tutorials'/'01_first.ipynb')[-1]=='**Next:** [Data](../10_data.ipynb)'
    assert sources(repo/'nbs'/'10_data.ipynb')[-2]=='**The last page.** Back to the first: [A package](index.ipynb)'

def test_badges_only_with_an_address(script, repo):
    pages = script('pages')
    refresh(pages, repo)
    assert not any('badge' in s or 'http' in s for page in repo.rglob('*.ipynb') for s in sources(page))
    set_url(repo, 'https://github.com/someone/faces')
    refresh(pages, repo)
    title,badges,install = sources(repo/'nbs'/'tutorials'/'01_first.ipynb')[:3]
    assert 'colab.research.google.com/github/someone/faces/blob/main/nbs/tutorials/01_first.ipynb' in badges
    assert 'kaggle.com/kernels/welcome?src=https://github.com/someone/faces/blob/main/nbs/tutorials/01_first.ipynb' in badges
    assert 'git+https://github.com/someone/faces"' in install and 'whl' not in install
    set_url(repo, 'https://example.org/faces') # neither site opens notebooks from there
    refresh(pages, repo)
    assert not any('badge' in s for page in repo.rglob('*.ipynb') for s in sources(page)) and 'git+https://example.org/faces' in sources(repo/'nbs'/'10_data.ipynb')[1]
    (repo/'pyproject.toml').write_text('[project.urls]\nRepository = "https://example.org/other"\n')
    with pytest.raises(ValueError, match='one of them is wrong'): refresh(pages, repo)
    set_url(repo, 'git@github.com:someone/faces')
    with pytest.raises(ValueError, match='https://'): refresh(pages, repo)

def test_a_page_asks_for_what_its_own_cells_import(script, repo):
    refresh(script('pages'), repo)
    first,data = sources(repo/'nbs'/'tutorials'/'01_first.ipynb')[1],sources(repo/'nbs'/'10_data.ipynb')[1]
    assert "['fer_perturb', 'dlib']" in first and '%pip install "../..[masks]"' in first
    assert 'onnx' not in data and '%pip install ".."' in data

def test_a_page_that_no_sidebar_lists(script, repo):
    write(repo/'nbs'/'11_new.ipynb', cell('markdown', '# New'))
    with pytest.raises(ValueError, match='11_new.ipynb'): refresh(script('pages'), repo)

def test_the_last_cell_leaves_foreign_folders_alone(script, tmp_path, monkeypatch):
    pytest.importorskip('nbdev')
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('IN_TEST', raising=False)
    exec(script('pages').export_cell, {})
    assert list(tmp_path.iterdir())==[]

def test_install_cell(script, tmp_path, monkeypatch):
    from IPython.core.inputtransformer2 import TransformerManager
    pages,ran = script('pages'),[]
    class Shell:
        def run_line_magic(self, magic, line): ran.append(line)
    def run(cfg, missing):
        monkeypatch.setattr('importlib.util.find_spec', lambda name: None if missing else object())
        code = TransformerManager().transform_cell(pages.install('10_data.ipynb', dict(cells=[]), cfg))
        exec(code, dict(get_ipython=Shell))
    monkeypatch.chdir(tmp_path)
    address = dict(git_url='https://github.com/someone/faces')
    for cfg in ({}, address): run(cfg, missing=False)
    assert not ran
    with pytest.raises(ModuleNotFoundError, match='In a clone'): run({}, missing=True)
    (tmp_path/'fer_perturb-0.1.0-py3-none-any.whl').touch()
    run({}, missing=True)
    run(address, missing=True)
    assert ran==['install -q "{wheels[-1]}"', 'install -q "fer_perturb @ git+https://github.com/someone/faces"']

def test_two_pages_run_alone(script):
    "Copied into an empty folder, with the package importable and nbdev not"
    alone = script('alone')
    notebooks = [next((root/'nbs').glob(f'*_{name}.ipynb')) for name in ('cli', 'evaluate')]
    with ThreadPoolExecutor(2) as pool: said = [s for _,s in pool.map(alone.run_alone, notebooks)]
    assert said==['', '']

def test_a_page_that_needs_nbdev_does_not_run_alone(script, tmp_path):
    write(tmp_path/'page.ipynb', cell('code', '1+1'), cell('code', '#| slow\nraise ValueError'), cell('code', '#| hide\nimport nbdev; nbdev.nbdev_export()'))
    said = script('alone').run_alone(tmp_path/'page.ipynb')[1]
    assert "No module named 'nbdev'" in said and 'cell 2' in said

def test_every_page_is_up_to_date(script):
    assert [path.name for path,_ in script('pages').stale_pages()]==[]

def test_imports_must_stand_alone(script, tmp_path):
    write(tmp_path/'nbs'/'10_a.ipynb', cell('code', '#| export\nimport math'), cell('code', 'import json\nmath.pi'), cell('code', '#| eval: false\nimport json\nmath.pi'),
          cell('code', 'def f(): import csv\nf2 = f3'), cell('code', '#| export\ndef g():\n    import math\n    return h()'), cell('code', 'x = nothing'))
    said = list(script('check_docs').check_imports(tmp_path/'nbs'))
    assert len(said)==2 and "'math' is not defined" in said[0] and "'f3' is not defined" in said[1] and said[0].startswith('nbs/10_a.ipynb, cell ')

@pytest.mark.parametrize('heading,anchor', [('Two words', 'two-words'), ('`FERData.part`', 'ferdata.part'), ('Eq. 1: what is *it*?', 'eq.-1-what-is-it'), ('3. Third [x](y)', 'third-x'),
                                            ('–', 'section'), ('top_pixels', 'top_pixels')])
def test_pandoc_id(script, heading, anchor): assert script('check_docs').pandoc_id(heading)==anchor

@pytest.fixture
def site(script, tmp_path):
    proc = tmp_path/'proc'
    def front(name): return cell('raw', f'---\noutput-file: {name}\ntitle: x\n---\n')
    write(proc/'10_a.ipynb', front('a.html'), cell('markdown', '## One\n\n```text\n## Not one\n```\n\n## One\n\n## Named {#own}'),
          cell('code', 'show_doc(f)', outputs=[dict(output_type='execute_result', data={'text/markdown': ['### f\n']})]))
    (proc/'images').mkdir()
    (proc/'images'/'p.png').touch()
    (tmp_path/'nbs').mkdir()
    (tmp_path/'LICENSE').touch()
    def make(text, **options):
        write(proc/'t'/'11_b.ipynb', front('b.html'), cell('markdown', text))
        return list(script('check_docs').Site(proc, tmp_path, **options).problems())
    return make

@pytest.mark.parametrize('link', ['../10_a.ipynb', '../10_a.ipynb#one', '../10_a.ipynb#one-1', '../10_a.ipynb#own', '/a.html#f', '11_b.ipynb', '../images/p.png',
                                  '../../LICENSE', 'https://elsewhere.org/x.html#y', 'mailto:a@b.c', '/blob/main/LICENSE#L3'])
def test_links_that_lead_somewhere(site, link): assert site(f'See [this]({link}), `[a](nowhere.ipynb)`.\n\n```\n[b](nowhere.ipynb)\n```')==[]

@pytest.mark.parametrize('link,why', [('10_a.ipynb', 'there is no nbs/t/10_a.ipynb'), ('../10_a.ipynb#two', 'no heading'), ('../10_a.ipynb#not-one', 'no heading'), ('#f', 'no heading'),
                                      ('/a.html#g', 'nbs/10_a.ipynb has no heading'), ('/c.html', 'c.html'), ('../images/q.png', 'images/q.png'), ('../../NOTHING', 'NOTHING'), ('/blob/main/x.py', 'x.py')])
def test_broken_links(site, link, why):
    for text in (f'See [this `f`]({link}).', f'<img src="{link}">', f'[1]: {link}'):
        said = site(text)
        assert len(said)==1 and said[0].startswith(f'nbs/t/11_b.ipynb links to {link}, and ') and why in said[0]

def test_links_by_the_websites_address(site):
    bases = ['https://x.github.io/faces/', 'https://github.com/x/faces']
    text = '[a](https://x.github.io/faces/a.html#f) [b](https://x.github.io/faces/a.html#g) [c](https://github.com/x/faces/blob/main/LICENSE)'
    assert site(text, bases=bases)==['nbs/t/11_b.ipynb links to https://x.github.io/faces/a.html#g, and nbs/10_a.ipynb has no heading of that name']

def test_python_m():
    "`python -m fer_perturb` is the command"
    out = subprocess.run([sys.executable, '-m', 'fer_perturb', '--help'], capture_output=True, text=True, check=True, cwd=root).stdout
    assert out.startswith('usage: fer-perturb') and 'demo' in out

@pytest.mark.parametrize('text,said', [('# T\n\n## A\n\n### B\n\n## C', None), ('# T\n\n### B', 'leave no level out'), ('## A', 'begin with a title'), ('# T\n\n# U', 'one only'),
                                       ('# T\n\n```\n### no heading\n```', None), ('# T\n\n![](a.png)', 'alternative text'), ('# T\n\n![a face](a.png)', None),
                                       ('# T\n\n<img src="a.png">', 'alternative text'), ('# T\n\n<img src="a.png" alt="a face">', None), ('# T\n\n`![](a.png)` `<img>`', None)])
def test_headings_and_alternative_texts(script, tmp_path, text, said):
    write(tmp_path/'nbs'/'page.ipynb', cell('markdown', text))
    found = list(script('check_docs').check_reading(tmp_path/'nbs'))
    assert found==[] if said is None else len(found)==1 and said in found[0]

def test_pictures_of_cells_have_a_text(script, tmp_path):
    picture = dict(outputs=[dict(output_type='display_data', data={'image/png': 'x'}, metadata={})])
    # on a page that exports, too
    write(tmp_path/'nbs'/'page.ipynb', cell('markdown', '# T'), cell('code', '#| default_exp page'), cell('code', 'plot()', **picture),
          cell('code', '#| fig-alt: "two bars"\nplot(2)', **picture), cell('code', '#| fig-alt: ""\nplot(3)', **picture))
    assert len(list(script('check_docs').check_reading(tmp_path/'nbs')))==2

def test_llms_lists_every_page(script, repo):
    llms = script('llms')
    (repo/'settings.ini').write_text('[DEFAULT]\nlib_name = x\ndescription = a thing\n')
    assert llms.text(repo)=='# x\n\n> a thing\n\n## Course\n\n- [First steps](nbs/tutorials/01_first.ipynb)\n\n## Start\n\n- [A package](nbs/index.ipynb): What it is\n- [Data](nbs/10_data.ipynb): Faces\n'
