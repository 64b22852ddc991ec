"""Write llms.txt: what the package is, and each page with its one-line summary, for programs that read documentation. It is made from the sidebar
and from the title and subtitle of each notebook."""
import argparse
import re
import sys
from pathlib import Path

import yaml

from pages import is_title, read, source, title
from settings import settings

here = Path(__file__).resolve().parent.parent

def summary(notebook):
    "The line that begins with > under a title"
    cell = next(c for c in notebook['cells'] if is_title(c))
    found = re.search(r'^> (.+)', source(cell), re.M)
    return found[1].strip() if found else ''

def sections(root):
    "Heading, and pages, of each section of the sidebar"
    loose = []
    for entry in yaml.safe_load((root/'_quarto.yml').read_text(encoding='utf-8'))['website']['sidebar']['contents']:
        if isinstance(entry, str): loose.append(entry)
        else: yield entry['section'],entry['contents']
    if loose: yield 'Start',loose

def text(root=here):
    "What llms.txt says"
    lines = [f'# {settings(root)["lib_name"]}', '', f'> {settings(root)["description"]}', '']
    for heading,pages in sections(root):
        lines += [f'## {heading}', '']
        for page in pages:
            notebook = read(root/'nbs'/page)
            line,about = f'- [{title(notebook, page)}](nbs/{page})',summary(notebook)
            lines.append(f'{line}: {about}' if about else line)
        lines.append('')
    return '\n'.join(lines)

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--check', action='store_true', help='write nothing, say whether the file is out of date')
    path = here/'llms.txt'
    stale = not path.exists() or path.read_text(encoding='utf-8')!=text()
    if parser.parse_args().check:
        if stale: sys.exit('llms.txt is out of date: run make pages and commit the outcome')
    elif stale: path.write_text(text(), encoding='utf-8')
    print('llms.txt lists every page')

if __name__=='__main__': main()
