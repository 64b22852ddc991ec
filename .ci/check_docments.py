"Has every public argument a docment: the comment beside it that says shape, range, unit or meaning"
import ast
import importlib
import inspect
import sys
from pathlib import Path

from fastcore.docments import docments

root = Path(__file__).resolve().parent.parent
package = 'fer_perturb'
functions = (ast.FunctionDef, ast.AsyncFunctionDef)
transform_hooks = {'encodes', 'decodes', 'setups'} # fastai finds these by name, no base class defines them

def arguments(node):
    "Names in a function's signature; what `@delegates` fills in is documented where it comes from"
    a = node.args
    named = [arg.arg for arg in (*a.posonlyargs, *a.args, *([a.vararg] if a.vararg else []), *a.kwonlyargs)]
    delegated = any('delegates' in ast.unparse(d) for d in node.decorator_list)
    return named + ([a.kwarg.arg] if a.kwarg and not delegated else [])

def patched_classes(node):
    "Classes that a `@patch` function becomes a method of"
    if not any(ast.unparse(d).partition('(')[0]=='patch' for d in node.decorator_list): return []
    return [n.id for n in ast.walk(node.args.args[0].annotation) if isinstance(n, ast.Name)]

def plain(member):
    "The function inside a property, a class method or a decorated function"
    member = getattr(member, 'fget', None) or getattr(member, '__func__', member)
    return inspect.unwrap(member)

def undocumented(name, node, function, skip=0):
    "One sentence on each argument of `function` without a docment"
    docs = docments(function, args_kwargs=True)
    missing = [a for a in arguments(node)[skip:] if not docs.get(a)]
    if missing: yield f'{name}, line {node.lineno}: no docment on {", ".join(missing)}'
    if node.returns and ast.unparse(node.returns)!='None' and not docs.get('return') and node.name!='__init__':
        yield f'{name}, line {node.lineno}: no docment on the return (`)->{ast.unparse(node.returns)}: # ...`)'

def inherited(cls, name):
    "Does a class outside of the package say what the method `name` of `cls` takes"
    return name in transform_hooks or any(name in vars(base) for base in cls.__mro__[1:] if not base.__module__.startswith(package))

def methods(module, path, node):
    "Constructor and public methods of a class; a method that a library's base class calls is documented there"
    cls = getattr(module, node.name)
    for n in node.body:
        if not isinstance(n, functions) or (n.name[0]=='_' and n.name!='__init__'): continue
        if n.name!='__init__' and inherited(cls, n.name): continue
        static = any(ast.unparse(d)=='staticmethod' for d in n.decorator_list)
        yield from undocumented(f'{path}: {node.name}.{n.name}', n, plain(vars(cls)[n.name]), skip=0 if static else 1)

def check(path):
    "All findings in one module"
    module = importlib.import_module(f'{package}.{path.stem}')
    public = getattr(module, '__all__', None)
    where = path.relative_to(root)
    for node in ast.parse(path.read_text(encoding='utf-8')).body:
        if isinstance(node, functions):
            classes = patched_classes(node)
            for c in classes:
                if node.name[0]!='_': yield from undocumented(f'{where}: {c}.{node.name}', node, plain(vars(getattr(module, c))[node.name]), skip=1)
            if not classes and node.name[0]!='_' and (public is None or node.name in public):
                yield from undocumented(f'{where}: {node.name}', node, plain(getattr(module, node.name)))
        elif isinstance(node, ast.ClassDef) and node.name[0]!='_': yield from methods(module, where, node)

def main():
    paths = sorted(p for p in (root/package).glob('*.py') if p.name[0]!='_')
    sys.path.insert(0, str(root))
    problems = [problem for path in paths for problem in check(path)]
    if problems: sys.exit('\n'.join(problems) + '\nsay it beside the argument in the notebook: `images:Tensor, # (n,h,w) uint8, gray`')
    print(f'{len(paths)} modules: every public argument has a docment')

if __name__=='__main__': main()
