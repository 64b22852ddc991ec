"""Would the website come out right? Runs nbdev's part of a docs build on a copy, which needs no Quarto, and follows all links of the pages
to other pages, their headings, pictures and sources. Before that it runs each cell with an import alone, since a docs build runs these
cells and few others. Headings have to nest, and pictures need an alternative text."""
import ast
import io
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path
from urllib.parse import unquote

here = Path(__file__).resolve().parent.parent
links = re.compile(r'\]\(\s*<?([^)\s>]+)|\b(?:src|href)="([^"]+)"|^\[[^\]]+\]:\s*(\S+)')
named = re.compile(r'\bid="([^"]+)"|\{[^}]*#([\w.:-]+)') # anchors that are written out

def notebook_paths(folder):
    "All notebooks in a folder that are pages"
    return sorted(p for p in folder.rglob('*.ipynb') if not re.search(r'(^|/)[._]', p.relative_to(folder).as_posix()))

def read(path): return json.loads(path.read_text(encoding='utf-8'))

def directives(source):
    "What the `#|` lines at a cell's top say"
    lines = source.split('\n')
    top = lines[:next((i for i,line in enumerate(lines) if not line.startswith('#|')), len(lines))]
    return {m[1]: m[2].strip().lower() for line in top if (m := re.match(r'#\|\s*([\w-]+):?(.*)', line))}

def import_cells(notebook):
    "Id and source of the cells that a docs build runs for their imports"
    for cell in notebook['cells']:
        source = ''.join(cell['source'])
        said = directives(source)
        if cell['cell_type']!='code' or said.get('eval')=='false' or 'nbdev_export()' in source: continue
        try: tree = ast.parse(source)
        except SyntaxError: continue # lines for IPython: a docs build leaves these cells out
        # an exported function may well import when it is called; in other cells nbdev looks for imports at any depth
        nodes = tree.body if said.keys() & {'export', 'exports', 'exporti'} else ast.walk(tree)
        if any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in nodes): yield cell['id'],source

def check_imports(nbs):
    "Each cell with an import must run in an empty namespace"
    for path in notebook_paths(nbs):
        for name,source in import_cells(read(path)):
            try:
                with redirect_stdout(io.StringIO()): exec(compile(source, f'cell {name}', 'exec'), {'__name__': '__main__'})
            except Exception as e:
                yield (f'{path.relative_to(nbs.parent).as_posix()}, cell {name}: {type(e).__name__}: {e}. '
                       'A docs build runs this cell without those before it: keep imports in cells of their own')

def process(copy):
    "Run nbdev's processing in `copy`; what it said where it failed"
    code = "if __name__=='__main__':\n    from nbdev.serve import proc_nbs\n    proc_nbs(force=True, n_workers=2)"
    # a file, since the workers of nbdev import the program that starts them
    (copy/'process.py').write_text(code, encoding='utf-8')
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(here), *filter(None, [os.environ.get('PYTHONPATH')])]), MPLBACKEND='agg')
    out = subprocess.run([sys.executable, 'process.py'], cwd=copy, env=env, capture_output=True, text=True, encoding='utf-8')
    return out.stderr.rpartition('\nException: ')[2].strip() if out.returncode else ''

def outside_code(text):
    "Lines of markdown that are in no fenced block"
    fence = ''
    for line in text.split('\n'):
        mark = re.match(r'\s*(```+|~~~+)', line)
        if fence: fence = '' if mark and mark[1].startswith(fence) else fence
        elif mark: fence = mark[1]
        else: yield line

def plain_lines(text):
    "Lines of markdown without code, nor what stands between backticks"
    for line in outside_code(text): yield re.sub(r'(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)', lambda m: '`'*len(m[0]), line)

def link_targets(text):
    "Where the links of markdown lead"
    for line in plain_lines(text):
        for m in links.finditer(line): yield next(g for g in m.groups() if g)

def pandoc_id(heading):
    "The anchor that pandoc makes of a heading"
    text = re.sub(r'!?\[([^\]]*)\]\([^)]*\)', r'\1', heading)
    text = re.sub(r'\s+', '-', re.sub(r'[^\w\s.-]', '', text).strip().lower())
    return text[next((i for i,c in enumerate(text) if c.isalpha()), len(text)):] or 'section'

def markdown_of(notebook):
    "All markdown of a page, that of its outputs too"
    for cell in notebook['cells']:
        if cell['cell_type']=='markdown': yield ''.join(cell['source'])
        for output in cell.get('outputs', []):
            if text := output.get('data', {}).get('text/markdown'): yield ''.join(text)

def anchors(notebook):
    "What a link may name after the # of this page"
    found,seen = set(),Counter()
    for text in markdown_of(notebook):
        for line in outside_code(text):
            found |= {a or b for a,b in named.findall(line)}
            if not (m := re.match(r'#{1,6}\s+(.*?)\s*#*\s*$', line)): continue
            name = pandoc_id(re.sub(r'\{[^}]*\}$', '', m[1]))
            found.add(f'{name}-{seen[name]}' if seen[name] else name)
            seen[name] += 1
    return found

def headings(notebook):
    "Level and text of each heading that is written in a page"
    for cell in notebook['cells']:
        if cell['cell_type']!='markdown': continue
        for line in outside_code(''.join(cell['source'])):
            if m := re.match(r'(#{1,6})\s+(.*)', line): yield len(m[1]),m[2]

def check_headings(page, notebook):
    "One title, first; then no level is left out"
    levels = list(headings(notebook))
    if [level for level,_ in levels].count(1)!=1 or levels[0][0]!=1: yield f'{page}: has to begin with a title, "# ", and has to have one only'
    for (before,_),(level,text) in zip(levels, levels[1:]):
        if level>before+1: yield f'{page}: {"#"*level} {text} comes after a heading of level {before}: leave no level out'

def check_pictures(page, notebook):
    "Pictures have a text for those who cannot see them"
    for text in markdown_of(notebook):
        lines = '\n'.join(plain_lines(text))
        if re.search(r'!\[\s*\]\(', lines) or any('alt=' not in tag for tag in re.findall(r'<img\b[^>]*>', lines)):
            yield f'{page}: a picture has no alternative text: say what it shows, as in ![a face](face.png)'
    for cell in notebook['cells']:
        draws = any('image/png' in o.get('data', {}) for o in cell.get('outputs', []))
        if draws and not directives(''.join(cell['source'])).get('fig-alt', '').strip('"'):
            yield f'{page}, cell {cell["id"]}: its picture has no alternative text: begin the cell with #| fig-alt: "what it shows"'

def check_reading(nbs):
    "Headings and pictures of all pages"
    for path in notebook_paths(nbs):
        page,notebook = path.relative_to(nbs.parent).as_posix(),read(path)
        yield from check_headings(page, notebook)
        yield from check_pictures(page, notebook)

class Site:
    "The pages in the folder `proc`, as nbdev leaves them, and the repository `root` they were made from"
    def __init__(self, proc, root, bases=()):
        self.proc,self.root = proc,root
        self.bases = [b.rstrip('/') for b in bases if b] # addresses of the website and of the repository
        self.pages = {p.relative_to(proc).as_posix(): read(p) for p in notebook_paths(proc)}
        self.anchors = {page: anchors(notebook) for page,notebook in self.pages.items()}
        self.html,self.twice = {},[]
        for page,notebook in self.pages.items():
            out = posixpath.join(posixpath.dirname(page), self.output(page, notebook))
            if out in self.html: self.twice.append(f'nbs/{page} and nbs/{self.html[out]} both become {out}: rename one')
            self.html[out] = page
    def output(self, page, notebook):
        "Name of a page's html file, from its front matter"
        raw = ''.join(c for cell in notebook['cells'] if cell['cell_type']=='raw' for c in cell['source'])
        m = re.search(r'^output-file: *(\S+)', raw, re.M)
        return m[1] if m else posixpath.basename(page).replace('.ipynb', '.html')
    def broken(self, page, link):
        "Why a link on a page leads nowhere, or None"
        for base in self.bases:
            if link.startswith(base): link = link[len(base):] or '/'
        if re.match(r'[a-z][a-z0-9+.-]*:', link, re.I): return
        path,_,anchor = unquote(link).partition('#')
        if m := re.match(r'/blob/[^/]+/(.+)', path): return None if (self.root/m[1]).exists() else f'there is no {m[1]}'
        to = posixpath.normpath(path[1:] or 'index.html' if path.startswith('/') else posixpath.join(posixpath.dirname(page), path)) if path else page
        to = self.html.get(to, to)
        if to in self.pages: return f'nbs/{to} has no heading of that name' if anchor and anchor not in self.anchors[to] else None
        # a page's neighbours come with it; other files of the repository are found on its own pages, such as the README
        if not to.endswith('.html') and ((self.proc/to).exists() or (to.startswith('../') and (self.root/'nbs'/to).exists())): return
        return f'there is no {posixpath.normpath("nbs/"+to)}'
    def problems(self):
        "A sentence on each broken link"
        yield from self.twice
        for page,notebook in self.pages.items():
            for link in dict.fromkeys(l for text in markdown_of(notebook) for l in link_targets(text)):
                if why := self.broken(page, link): yield f'nbs/{page} links to {link}, and {why}'

def check_texts(root):
    "Links of the repository's own pages to its files"
    for path in sorted([*root.glob('*.md'), *root.glob('llms.txt'), *root.glob('benchmarks/*.md'), *root.glob('results/**/*.md')]):
        for link in dict.fromkeys(link_targets(path.read_text(encoding='utf-8'))):
            if re.match(r'[a-z][a-z0-9+.-]*:|#', link, re.I): continue
            if not (path.parent/unquote(link).partition('#')[0]).exists(): yield f'{path.relative_to(root).as_posix()} links to {link}, and there is no such file'

def check_site(root):
    "Build the pages on a copy and follow their links"
    from nbdev.config import get_config
    with tempfile.TemporaryDirectory() as tmp:
        copy = Path(tmp).resolve()/'site'
        shutil.copytree(root/'nbs', copy/'nbs', ignore=shutil.ignore_patterns('.*', 'nbdev.yml'))
        for name in ('pyproject.toml', 'settings.ini'): shutil.copy(root/name, copy)
        if said := process(copy): return [f'{said}\nnbdev cannot process the notebooks for the website: see above']
        cfg = get_config(copy)
        site = Site(copy/'_proc', root, (cfg.doc_url, cfg.git_url))
        missing = {p.relative_to(root/'nbs').as_posix() for p in notebook_paths(root/'nbs')} - site.pages.keys()
        return [*(f'nbs/{page}: nbdev leaves this page out' for page in sorted(missing)), *site.problems()]

def main():
    os.environ['MPLBACKEND'] = 'agg'
    sys.path.insert(0, str(here))
    problems = list(check_imports(here/'nbs')) or check_site(here)
    problems += [*check_texts(here), *check_reading(here/'nbs')]
    if problems: sys.exit('\n'.join(problems))
    print(f'{len(notebook_paths(here/"nbs"))} pages: imports run alone, nbdev processes them, all links, anchors and pictures are there, headings nest')

if __name__=='__main__': main()
