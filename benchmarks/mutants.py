"""Do the tests notice a fault? Modules with one small change each: python -m benchmarks.mutants [--mutants 60] [--seed 0] [--rooms kmeans,perturb]

A comparison is turned, a sum becomes a difference, a number one more, a statement nothing. Where the tests of that room stay green, the mutant
has survived, and is shown. Processes are forked, which Windows cannot do."""
import argparse
import ast
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

root = Path(__file__).resolve().parent.parent

ROOMS = dict(
    kmeans='test_kmeans', perturb='test_perturb test_hiding', forms='test_hiding test_perturb', evaluate='test_evaluate',
    learner='test_learner', readers='test_readers test_forms_of_data')

turned = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn,
          ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
          ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.And: ast.Or, ast.Or: ast.And}

def changed(node):
    "Another node for this one; None where there is none"
    if isinstance(node, ast.Compare) and type(node.ops[0]) in turned: return ast.Compare(node.left, [turned[type(node.ops[0])](), *node.ops[1:]], node.comparators)
    if isinstance(node, ast.BinOp) and type(node.op) in turned: return ast.BinOp(node.left, turned[type(node.op)](), node.right)
    if isinstance(node, ast.BoolOp): return ast.BoolOp(turned[type(node.op)](), node.values)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not): return node.operand
    if isinstance(node, ast.Constant) and isinstance(node.value, bool): return ast.Constant(not node.value)
    if isinstance(node, ast.Constant) and isinstance(node.value, int): return ast.Constant(node.value+1)
    if isinstance(node, ast.Constant) and isinstance(node.value, float): return ast.Constant(2*node.value+.125)
    if isinstance(node, (ast.AugAssign, ast.Delete)) or isinstance(node, ast.Expr) and isinstance(node.value, ast.Call): return ast.Pass()
    if isinstance(node, ast.IfExp): return node.body

def in_texts(tree):
    "Nodes below annotations, decorators, formatted texts and raised errors"
    below = set()
    for node in ast.walk(tree):
        tops = [node] if isinstance(node, (ast.JoinedStr, ast.Raise)) else [n for field in ('annotation', 'returns') if isinstance(n := getattr(node, field, None), ast.AST)]
        tops += getattr(node, 'decorator_list', [])
        below |= {id(n) for top in tops for n in ast.walk(top)}
    return below

def places(tree):
    "Every (parent, field, number or None, node) that can be changed; annotations, decorators and texts are left alone"
    texts = in_texts(tree)
    for parent in ast.walk(tree):
        if id(parent) in texts: continue
        for field,value in ast.iter_fields(parent):
            for number,node in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if isinstance(node, ast.AST) and id(node) not in texts and changed(node): yield parent,field,number,node

def mutant(source, rng):
    "A source with one change, and the change in words"
    tree = ast.parse(source)
    parent,field,number,node = rng.choice([*places(tree)])
    new = ast.fix_missing_locations(ast.copy_location(changed(node), node))
    said = f'line {node.lineno}: {ast.unparse(node)}  ->  {ast.unparse(new)}'
    if number is None: setattr(parent, field, new)
    else: getattr(parent, field)[number] = new
    return ast.unparse(tree),said

def tested(folder, tests, seconds):
    "Exit status of the tests in a forked process; None where they take longer"
    pid = os.fork()
    if not pid:
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        import pytest
        os._exit(pytest.main(['-x', '-q', '-p', 'no:cacheprovider', '-p', 'no:xdist', *(f'tests/{t}.py' for t in tests.split())]))
    end = time.monotonic()+seconds
    while time.monotonic()<end:
        done,status = os.waitpid(pid, os.WNOHANG)
        if done: return os.waitstatus_to_exitcode(status)
        time.sleep(.1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--mutants', type=int, default=60)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--rooms', default=','.join(ROOMS))
    options = parser.parse_args()
    import fastai.vision.all, pandas, sklearn.cluster, torch  # noqa: F401: loaded once, and not by every child
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix='mutants'))
    for name in ('fer_perturb', 'tests', 'benchmarks', 'nbs', 'results', '.ci'):
        shutil.copytree(root/name, folder/name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('settings.ini', 'pyproject.toml'): shutil.copy(root/name, folder)
    rooms,seconds,survivors = options.rooms.split(','),{},[]
    for room in rooms:
        start = time.monotonic()
        if tested(folder, ROOMS[room], 900): raise SystemExit(f'the tests of {room} fail as they are')
        seconds[room] = time.monotonic()-start
    for i in range(options.mutants):
        room = rooms[i%len(rooms)]
        path = folder/'fer_perturb'/f'{room}.py'
        whole = path.read_text(encoding='utf-8')
        source,said = mutant(whole, random.Random(f'{options.seed} {i}'))
        path.write_text(source, encoding='utf-8')
        status = tested(folder, ROOMS[room], 60+3*seconds[room])
        path.write_text(whole, encoding='utf-8')
        print(f'{i} {room}: {said}: {"survives" if status==0 else "killed"}', flush=True)
        if status==0: survivors.append(f'{room}, {said}')
    shutil.rmtree(folder)
    print(f'{options.mutants-len(survivors)} of {options.mutants} mutants killed', *survivors, sep='\n')

if __name__=='__main__': main()
