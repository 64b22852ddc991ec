"""A release, up to what cannot be undone: looks for what stands in the way, runs all tests and checks, builds dist/ twice and compares, tries the
wheel in a fresh environment, and prints the commands that are left. It tags and uploads nothing. `digests`: build the last commit, and print
what its files ought to be."""
import gzip
import hashlib
import io
import os
import re
import stat
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

root = Path(__file__).resolve().parent.parent

def said(*args, folder=root):
    "What a command printed"
    return subprocess.run(args, cwd=folder, capture_output=True, text=True).stdout.strip()

def version(folder=root): return re.search(r'__version__ = "(.+)"', (folder/'fer_perturb'/'__init__.py').read_text(encoding='utf-8'))[1]

def hindrances(folder=root):
    "What stands in the way of a release, a sentence each"
    v = version(folder)
    if said('git', 'status', '--porcelain', folder=folder): yield 'there are changes that are not committed: commit them, or put them aside'
    if (branch := said('git', 'branch', '--show-current', folder=folder))!='main': yield f'this is the branch {branch!r}: releases are made from main'
    if said('git', 'tag', '--list', f'v{v}', folder=folder): yield f'v{v} is released: set the next version in fer_perturb/__init__.py'
    heading = re.search(rf'^## \[{re.escape(v)}\] - (.*)$', (folder/'CHANGELOG.md').read_text(encoding='utf-8'), re.M)
    if not heading: yield f'CHANGELOG.md has no heading "## [{v}] - DATE"'
    elif not re.fullmatch(r'\d{4}-\d\d-\d\d', heading[1]): yield f'CHANGELOG.md dates {v} {heading[1]!r}: write the day, such as 2027-01-31'
    cited = re.search(r'^version: (.*)$', (folder/'CITATION.cff').read_text(encoding='utf-8'), re.M)
    if not cited or cited[1]!=v: yield f'CITATION.cff names another version than {v}'

def settle(sdist, when):
    "Pack an archive anew, without what depends on who packs it: times, owners, order, modes"
    with tarfile.open(sdist) as packed:
        files = [(m, packed.extractfile(m).read() if m.isfile() else b'') for m in sorted(packed.getmembers(), key=lambda m: m.name)]
    with open(sdist, 'wb') as f, gzip.GzipFile('', 'wb', fileobj=f, mtime=when) as zipped, tarfile.open(fileobj=zipped, mode='w') as packed:
        for m,content in files:
            m.mtime,m.uid,m.gid,m.uname,m.gname,m.pax_headers = when,0,0,'','',{}
            m.mode = 0o755 if m.isdir() or m.mode & stat.S_IXUSR else 0o644
            packed.addfile(m, io.BytesIO(content))

def build(to, folder=root, python=sys.executable):
    "Wheel and sdist of the last commit, and their digests; its time stands for that of all files; `python` has setuptools"
    with tempfile.TemporaryDirectory() as tmp:
        source = Path(tmp)/'source'
        subprocess.run(['git', '-c', 'core.autocrlf=false', 'clone', '-q', folder, source], check=True, umask=0o022) # a wheel keeps modes
        when = said('git', 'log', '-1', '--format=%ct', folder=source)
        code = f'from setuptools import build_meta as b; b.build_sdist({str(to)!r}); b.build_wheel({str(to)!r})'
        subprocess.run([python, '-c', code], cwd=source, env=os.environ | dict(SOURCE_DATE_EPOCH=when), check=True, umask=0o022,
                       stdout=subprocess.DEVNULL)
    for sdist in Path(to).glob('*.tar.gz'): settle(sdist, int(when))
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(Path(to).iterdir())}

def main():
    if sys.argv[1:]==['digests']:
        with tempfile.TemporaryDirectory() as to: return print(*(f'{digest}  {name}' for name,digest in build(to).items()), sep='\n')
    if found := [*hindrances()]: sys.exit('\n'.join(['no release yet:', *(f'- {sentence}' for sentence in found)]))
    subprocess.run(['bash', '.ci/run'], cwd=root, check=True)
    (root/'dist').mkdir(exist_ok=True)
    for old in (root/'dist').iterdir(): old.unlink()
    with tempfile.TemporaryDirectory() as again:
        digests,others = build(root/'dist'),build(again)
    for name in digests:
        if digests[name]!=others[name]: sys.exit(f'{name} differs when it is built again from the same commit: find out why')
    subprocess.run([sys.executable, '.ci/try_install.py', 'wheel', '--dist', 'dist'], cwd=root, check=True)
    print(*(f'{digest}  dist/{name}' for name,digest in digests.items()), sep='\n')
    print('\nBuilt twice, with the same bytes. Before you go on:',
          '- `python .ci/try_install.py sdist` and `minima` passed since the last change of settings.ini or constraints.txt',
          '- the results that README and pages quote are those of `results/`, and CHANGELOG.md says what changed',
          '- weaknesses and licences of what stands beneath: SECURITY.md says how to look; a new weakness gets a newer minimum in settings.ini',
          '\nThen, once and for all:', f'git tag -a v{version()} -m "fer_perturb {version()}"', f'git push origin v{version()}',
          'python -m twine upload dist/*', sep='\n')

if __name__=='__main__': main()
