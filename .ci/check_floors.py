"Does each module import from lower floors only? A floor is the number in the name of a module's notebook"
import ast
import json
import re
import sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
package = 'fer_perturb'

def module_of(path):
    "The module that a notebook exports to, None if it exports to none"
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    found = (re.match(r'#\|\s*default_exp\s+(\S+)', ''.join(c['source'])) for c in cells if c['cell_type']=='code')
    return next((m[1] for m in found if m), None)

def floors():
    "The floor of each module, and two notebooks on one floor or for one module as findings"
    found,problems = {},[]
    for path in sorted((root/'nbs').glob('*.ipynb')):
        number,module = re.match(r'(\d*)', path.name)[1],module_of(path)
        if module is None: continue
        if not number: problems.append(f'nbs/{path.name} exports to {module}, and its name has no number: give it one')
        elif module in found: problems.append(f'nbs/{path.name}: {module} is exported by another notebook, too')
        elif int(number) in found.values(): problems.append(f'nbs/{path.name}: another notebook has the number {number}')
        else: found[module] = int(number)
    return found,problems

def imported(path):
    "Line and name of every module of the package that a module imports, inside its functions, too"
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import): names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join(filter(None, [package if node.level else '', node.module]))
            names = [f'{base}.{a.name}' for a in node.names] if base==package else [base]
        else: continue
        for name in names:
            top,_,rest = name.partition('.')
            if top==package and rest: yield node.lineno,rest.partition('.')[0]

def main():
    known,problems = floors()
    paths = sorted(p for p in (root/package).glob('*.py') if p.stem not in ('__init__', '__main__', '_modidx'))
    for path in paths:
        where,floor = path.relative_to(root),known.get(path.stem)
        if floor is None:
            problems.append(f'{where}: no notebook exports this module: delete it, or write its notebook')
            continue
        for line,name in imported(path):
            if name.startswith('__'): continue
            if name not in known: problems.append(f'{where}, line {line}: imports {name}, and there is no such module')
            elif known[name]>=floor: problems.append(f'{where}, line {line}: {floor}_{path.stem} imports from {known[name]}_{name}: only lower numbers may be imported')
    if problems: sys.exit('\n'.join(problems))
    print(f'{len(paths)} modules: each imports from lower floors only')

if __name__=='__main__': main()
