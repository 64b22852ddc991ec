"Is every file fit for a public repository: no pictures or data that nobody vouched for, no path of one machine, nothing too big"
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import yaml

root = Path(__file__).resolve().parent.parent
allow_list = '.ci/allowed_files.txt'
binary_suffixes = {'.jpg', '.jpeg', '.png', '.gif', '.bmp', '.webp', '.npz', '.npy', '.pkl', '.pt', '.pth', '.onnx', '.safetensors', '.zip', '.tar', '.gz'}
notebook_limit,weights_limit,file_limit = 400_000,8_000_000,1_000_000
# a home or scratch folder at the start of a path; URLs, relative paths and ~/ do not match
machine_path = re.compile(r'(?<![\w.~*-])/(?:root|home|work|tmp|Users|opt|mnt|var/folders)/[\w.-]+|/(?:site|dist)-packages/|\b[A-Z]:\\+Users\\')

def files():
    "All files that are tracked, or would be by `git add`"
    out = subprocess.run(['git', 'ls-files', '-zco', '--exclude-standard'], cwd=root, check=True, capture_output=True, text=True).stdout
    return sorted({f for f in out.split('\0') if f and (root/f).is_file()})

def allowed():
    "The pictures and data files that somebody vouched for"
    lines = (root/allow_list).read_text(encoding='utf-8').splitlines()
    return [path for line in lines if (path := line.partition('#')[0].strip())]

def texts(value):
    "All strings of a notebook but its pictures, which may hold any characters"
    if isinstance(value, str): yield value
    elif isinstance(value, list): yield from texts(''.join(value)) if all(isinstance(v, str) for v in value) else (t for v in value for t in texts(v))
    elif isinstance(value, dict):
        for key,v in value.items():
            if not key.startswith('image/'): yield from texts(v)

def check_kind(name, vouched):
    "Pictures and data must be on the allow list"
    if name.startswith('results/') and name.endswith('.npz'): yield from check_results(name)
    elif Path(name).suffix.lower() in binary_suffixes and name not in vouched:
        yield f'{name}: pictures and data stay out of the repository; if it shows no real face, vouch for it in {allow_list}'

def check_results(name):
    "Results hold predictions, labels and a few maps that are means over many faces, never a set of images"
    with np.load(root/name, allow_pickle=False) as arrays:
        for key in arrays:
            if arrays[key].ndim>2 and len(arrays[key])>20: yield f'{name}: {key} has the shape {arrays[key].shape}: results hold no images'

def check_size(name):
    "Notebooks, weights, and files in general have a limit"
    size,limit = (root/name).stat().st_size,{'.ipynb': notebook_limit, '.safetensors': weights_limit}.get(Path(name).suffix, file_limit)
    if size>limit: yield f'{name}: {size/1000:,.0f} kB, and {limit/1000:,.0f} is the limit: show fewer or smaller outputs'

def check_paths(name):
    "No path that exists on one machine only"
    try: text = (root/name).read_text(encoding='utf-8')
    except UnicodeDecodeError: return
    # outputs may hold html with pictures inside, whose base64 can spell anything
    parts = [re.sub(r'base64,[\w+/=\s\\]+', '', t) for t in (texts(json.loads(text)) if name.endswith('.ipynb') else [text])]
    for part in parts:
        for line in part.splitlines():
            if match := machine_path.search(line): yield f'{name}: names the local path {match[0]!r} in: {line.strip()[:120]}'

def sidebar_pages(contents):
    "The pages in a sidebar, sections included"
    for entry in contents:
        if isinstance(entry, str): yield entry
        else:
            if page := entry.get('file') or entry.get('href'): yield page
            yield from sidebar_pages(entry.get('contents', []))

def check_sidebar(names):
    "Every notebook is a page of the website, and every page a notebook"
    listed = list(sidebar_pages(yaml.safe_load((root/'nbs'/'_quarto.yml').read_text(encoding='utf-8'))['website']['sidebar']['contents']))
    present = {n.removeprefix('nbs/') for n in names if n.startswith('nbs/') and n.endswith('.ipynb')}
    for page in sorted(present - set(listed)): yield f'_quarto.yml: nbs/{page} is not in the sidebar: add it'
    for page in sorted(set(listed) - present): yield f'_quarto.yml: the sidebar lists {page}, and there is no such notebook: remove it'

def main():
    names,vouched = files(),allowed()
    problems = [f'{allow_list}: {path} is on the list but not in the repository: remove the line' for path in vouched if path not in names]
    for name in names: problems += [*check_kind(name, vouched), *check_size(name), *check_paths(name)]
    problems += check_sidebar(names)
    if problems: sys.exit('\n'.join(problems))
    print(f'{len(names)} files: no unvouched picture or data, no local path, none too big, sidebar complete')

if __name__=='__main__': main()
