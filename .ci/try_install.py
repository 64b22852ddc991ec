"""What is delivered, tried in a fresh environment: `wheel` and `sdist` install what is built of the last commit and run the README's Python lines,
`wheel` its commands for a photo, too; `sdist` then runs the tests of the unpacked archive, and `minima` does so with the oldest versions that settings.ini allows. Needs the network."""
import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import venv
from pathlib import Path

from release import build, root
from settings import settings

def run(*args, **options):
    "Run a command, say it first; leaves with a sentence if it fails"
    print('+', *(Path(a).name if isinstance(a, Path) else a for a in args), flush=True)
    code = subprocess.run([str(a) for a in args], **options).returncode
    if code: sys.exit(f'this failed with status {code}: {" ".join(map(str, args))}')

def minima(*extras):
    "The lowest version of each requirement, as pip takes it"
    config = settings(root)
    wanted = ' '.join([config['requirements'], *(config[f'{extra}_requirements'] for extra in extras)]).split()
    return list(dict.fromkeys(w.replace('>=', '==') for w in wanted))

def torch_first(what):
    "torch and torchvision go in first, so that nothing else decides about their version"
    lines = minima() if what=='minima' else (root/'constraints.txt').read_text(encoding='utf-8').splitlines()
    return [line for line in lines if re.match(r'torch(vision)?==', line)]

def readme_lines():
    "The Python code of README.md"
    return '\n'.join(re.findall(r'^```python\n(.*?)^```', (root/'README.md').read_text(encoding='utf-8'), flags=re.M|re.S))

def readme_extras():
    "What the README's install line asks for, as in `[masks,explore]`"
    return re.search(r"^pip install '\.(\[.*?\])'", (root/'README.md').read_text(encoding='utf-8'), flags=re.M)[1]

def try_commands(bin, folder, env):
    "What the README says about a photo: two commands that answer, and one that serves a page"
    code = "from PIL import Image; from fer_perturb.photos import toy_scene; Image.fromarray(toy_scene(['happy'], [100], [0], seed=7).image).save('photo.jpg')"
    run(bin/'python', '-c', code, cwd=folder, env=env)
    for name in ('predict', 'explain'): run(bin/'fer-perturb', name, 'photo.jpg', cwd=folder, env=env)
    with subprocess.Popen([bin/'fer-perturb', 'explore'], cwd=folder, env=env | dict(BROWSER='true'), stdout=subprocess.PIPE, text=True) as served:
        try:
            address = re.match(r'http://\S+', served.stdout.readline())[0]
            for _ in range(60):
                time.sleep(1)
                try: status = urllib.request.urlopen(address, timeout=120).status
                except urllib.error.HTTPError as e: status = e.code
                except OSError: continue
                break
            if status!=200: sys.exit(f'fer-perturb explore: the page answers with status {status}')
            print(f'+ fer-perturb explore: {address} answers')
        finally: served.terminate()

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('what', choices=['wheel', 'sdist', 'minima', 'print'], help='print: show the oldest versions and do nothing')
    parser.add_argument('--dist', type=Path, help='a folder that holds wheel and sdist, which are tried then (default: they are built)')
    parser.add_argument('--folder', type=Path, help='where to work, kept afterwards (default: a temporary folder)')
    options = parser.parse_args()
    if options.what=='print': return print(*minima('dev', 'masks'), sep='\n')
    with tempfile.TemporaryDirectory() as tmp:
        tmp = (options.folder or Path(tmp)).resolve()
        env,empty,built = (tmp/name for name in ('env', 'empty', 'dist'))
        for folder in (empty, built):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        venv.create(env, with_pip=True)
        python,bin = env/'bin'/'python',env/'bin'
        pip = python,'-m','pip','install','-q','--disable-pip-version-check'
        run(*pip, *torch_first(options.what))
        run(*pip, 'setuptools>=77')
        run(python, '-m', 'pip', 'uninstall', '-q', '-y', 'fer_perturb', stderr=subprocess.DEVNULL) # where the folder is used again
        if not options.dist: build(built, python=python)
        found = options.dist or built
        (sdist,),(wheel,) = found.glob('*.tar.gz'),found.glob('*.whl')
        clean = {k: v for k,v in os.environ.items() if k not in ('PYTHONPATH', 'VIRTUAL_ENV')}
        clean['PATH'] = os.pathsep.join([str(bin), clean['PATH']])
        if options.what=='minima': run(*pip, *minima('dev', 'masks'), sdist, env=clean)
        else: run(*pip, f'{wheel}{readme_extras()}' if options.what=='wheel' else sdist, env=clean)
        for command in ([bin/'fer-perturb'], [python, '-m', 'fer_perturb']): run(*command, '--help', cwd=empty, env=clean, stdout=subprocess.DEVNULL)
        (empty/'lines.py').write_text(readme_lines(), encoding='utf-8')
        run(python, 'lines.py', cwd=empty, env=clean, stdout=subprocess.DEVNULL) # hundreds of steps of progress bars
        if options.what=='wheel': try_commands(bin, empty, clean)
        else:
            with tarfile.open(sdist) as archive: archive.extractall(tmp, filter='data')
            unpacked = tmp/sdist.name.removesuffix('.tar.gz')
            if options.what=='sdist': run(*pip, f'{sdist}[dev]', env=clean)
            run(python, '-m', 'pytest', '-q', cwd=unpacked, env=clean)
            run(bin/'nbdev-test', '--n-workers', '2', cwd=unpacked, env=clean | dict(OMP_NUM_THREADS='1'))
        print(f'{options.what}: works')

if __name__=='__main__': main()
