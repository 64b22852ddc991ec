"Run notebooks alone: each is copied into an empty folder and runs there from top to bottom, with the package importable and nbdev not"
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from time import monotonic

root = Path(__file__).resolve().parent.parent
skip_flags = {'notest', 'slow', 'cuda'} # as in the tests

class NoNbdev:
    "Finder that says of nbdev that it is not installed"
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0]=='nbdev': raise ModuleNotFoundError(f'No module named {name!r}', name=name)

def run_cells(path):
    "Run the notebook `path` in this process, as Jupyter does; leaves with 1 at the first cell that fails"
    sys.meta_path.insert(0, NoNbdev())
    from IPython.core.interactiveshell import InteractiveShell
    shell = InteractiveShell.instance(colors='nocolor')
    for n,cell in enumerate(json.loads(Path(path).read_text(encoding='utf-8'))['cells']):
        text = ''.join(cell['source'])
        if cell['cell_type']!='code' or skip_flags & set(re.findall(r'^#\|\s*(\w+)', text, re.M)): continue
        if not shell.run_cell(text).success: sys.exit(f'cell {n}, which begins with {text.strip()[:80]!r}, fails')

def run_alone(notebook):
    "Seconds that a notebook took, and what it said where it failed (empty: it ran)"
    package = find_spec('fer_perturb')
    if not package: sys.exit('fer_perturb cannot be imported here: install it first, pip install .')
    with tempfile.TemporaryDirectory() as tmp:
        empty = Path(tmp)/'empty'
        empty.mkdir()
        shutil.copy(notebook, empty)
        # a package that is not installed but found beside this script has to be found from the empty folder too
        places = [str(Path(package.origin).parent.parent), *filter(None, [os.environ.get('PYTHONPATH')])]
        env = os.environ | dict(PYTHONPATH=os.pathsep.join(places), MPLBACKEND='agg', FER_PERTURB_CACHE=str(Path(tmp)/'cache'))
        env.pop('IN_TEST', None) # with it the last cell would do nothing anyway
        start = monotonic()
        out = subprocess.run([sys.executable, str(Path(__file__).resolve()), '--here', Path(notebook).name], cwd=empty, env=env,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding='utf-8', errors='replace')
        return monotonic()-start,'\n'.join(out.stdout.splitlines()[-40:]) if out.returncode else ''

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('notebooks', nargs='*', type=Path, help='default: all in nbs/')
    parser.add_argument('--here', action='store_true', help='run the one notebook named, in this folder and process')
    parser.add_argument('--workers', type=int, default=2, help='notebooks at a time (default: %(default)s)')
    options = parser.parse_args()
    if options.here: return run_cells(*options.notebooks)
    found = (p for p in (root/'nbs').rglob('*.ipynb') if not re.search(r'(^|/)[._]', p.relative_to(root/'nbs').as_posix()))
    notebooks,failed = options.notebooks or sorted(found),[]
    with ThreadPoolExecutor(options.workers) as pool:
        for notebook,(seconds,said) in zip(notebooks, pool.map(run_alone, notebooks)):
            print(f'{notebook.name}: {"fails" if said else "runs alone"}, {seconds:.0f} s', flush=True)
            if said: failed.append(f'{notebook.name}:\n{said}')
    if failed: sys.exit('\n\n'.join(['', *failed]))

if __name__=='__main__': main()
