"Write README.md from nbs/index.ipynb, without Quarto (which `nbdev-readme` needs)"
import posixpath
import re
import sys
from pathlib import Path

import nbformat

root = Path(__file__).resolve().parent.parent
source,target = 'nbs/index.ipynb','README.md'
hidden = {'hide', 'include: false'}

def split_directives(text):
    "The set of `#|` lines at a cell's top, without `#|`, and the rest of the cell"
    lines = text.split('\n')
    n = next((i for i,line in enumerate(lines) if not line.startswith('#|')), len(lines))
    return {line[2:].strip() for line in lines[:n]},'\n'.join(lines[n:]).strip('\n')

def from_root(link):
    "A link as written in nbs/, seen from the top folder; a broken one is an error"
    path,mark,anchor = link.partition('#')
    if not path or re.match(r'[a-z][a-z0-9+.-]*:|/', path): return link
    moved = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if not (root/moved).exists(): sys.exit(f'{source} links to {path}, and there is no {moved}: mend the link')
    return moved + mark + anchor

def markdown(text):
    "Text with its links moved; fenced code stays as it is"
    parts = re.split(r'(^```.*?^```)', text, flags=re.M|re.S)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r'(\]\(|\b(?:src|href)=")([^)\s"]+)', lambda m: m[1] + from_root(m[2]), parts[i])
    return ''.join(parts)

def outputs(cell):
    "The text a cell printed or returned; pictures and tables have no place in the README"
    for o in cell.get('outputs', []):
        data = o.get('data', {})
        text = o.get('text', '') if o.output_type=='stream' else '' if any(k.startswith('image/') for k in data) else data.get('text/plain', '')
        if text.strip(): yield f'```text\n{text.rstrip().lstrip(chr(10))}\n```'

def render(notebook):
    "The notebook as markdown"
    blocks = ['<!-- Made from nbs/index.ipynb by `make readme`: edit the notebook, not this file. -->']
    for cell in notebook.cells:
        directives,body = split_directives(cell.source)
        if cell.cell_type=='raw' or not body or directives & hidden: continue
        if cell.cell_type=='markdown': blocks.append(markdown(body))
        else: blocks += [f'```python\n{body}\n```', *([] if 'output: false' in directives else outputs(cell))]
    return '\n\n'.join(blocks) + '\n'

if __name__=='__main__':
    if not (root/source).exists(): sys.exit(f'{source} is missing: {target} is made from it')
    (root/target).write_text(render(nbformat.read(root/source, as_version=4)), encoding='utf-8')
    print(f'{target} is written from {source}')
