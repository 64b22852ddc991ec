"What all benchmarks share: the data, interleaved timing, goals, tables, and a description of the machine"
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

root = Path(__file__).resolve().parent.parent
bench_extra = "not installed: pip install 'fer_perturb[bench]'"
packages = ('torch', 'torchvision', 'fastai', 'timm', 'numpy', 'scipy', 'scikit-learn', 'pillow', 'fast-pytorch-kmeans', 'faiss-cpu', 'flash-kmeans')
instruction_sets = ('avx2', 'avx512f', 'avx512_bf16', 'avx512_fp16', 'amx_bf16', 'asimd', 'bf16')

# settings

@dataclass
class Settings:
    "What every topic is given"
    quick: bool = False # small and few, to see that all runs; the numbers mean nothing
    data: Path = None # FER2013 in any form that `load_faces` reads; toy faces if None
    kept: dict = field(default_factory=dict)

    def pick(self,
        full, # for a full run
        quick, # for a quick one
    ): # one of the two
        return quick if self.quick else full
    def faces(self,
        n_train:int, # Training images wanted
        n_valid:int=0, # PublicTest images wanted
    ): # FERData with at most as many
        "The first faces of both parts"
        if 'faces' not in self.kept:
            from fer_perturb.readers import load_faces
            from fer_perturb.toyfaces import toy_faces
            self.kept['faces'] = load_faces(self.data) if self.data else toy_faces(self.pick(5000, 500))
        data = self.kept['faces']
        rows = [(data.usage==u).nonzero()[:n,0] for u,n in enumerate((n_train, n_valid))]
        return data[[i for part in rows for i in part.tolist()]]

# timing

Spread = namedtuple('Spread', 'median low high')
Goal = namedtuple('Goal', 'what measured at_least at_most', defaults=(None, None))

def seconds_per_item(
    run, # callable; returns how many items it handled, None counts as one
    at_least:float=0.2, # seconds; `run` is repeated until they have passed
)->float: # seconds
    "One turn of one competitor"
    gc.collect()
    items,start = 0,time.perf_counter()
    while True:
        items += run() or 1
        spent = time.perf_counter()-start
        if spent>=at_least: return spent/items

def compare(
    competitors:dict, # {name: callable}, see `seconds_per_item`; warmed up
    rounds:int=5, # turns of each
    at_least:float=0.2, # seconds of one turn
)->dict: # {name: seconds per item in each round}
    "Time competitors in turn, A B C A B C ..., so that whatever disturbs the machine meets all of them"
    times = {name: [] for name in competitors}
    for _ in range(rounds):
        for name,run in competitors.items(): times[name].append(seconds_per_item(run, at_least))
    return times

def spread(
    values:list, # one for each round
)->Spread: # median, lowest and highest
    return Spread(statistics.median(values), min(values), max(values))

def ratio(
    over:list, # seconds in each round
    under:list, # seconds in each round
)->Spread: # of the ratios within each round
    "How many times longer `over` takes than `under`"
    return spread([a/b for a,b in zip(over, under)])

# tables

@dataclass
class Table:
    "A table of results, with what has to be known to read it"
    title: str
    columns: tuple
    rows: list # of tuples: str, number or `Spread`
    note: str = ''
    goals: list = field(default_factory=list) # of `Goal`

def number(
    value:float, # any size
)->str: # three significant digits
    if value and abs(value)<1e-3: return f'{value:.1e}'
    digits = max(0, 3-len(str(int(abs(value))))) if abs(value)>=1 else 3
    return f'{value:,.{digits}f}'

def cell(
    value, # str, number or `Spread`
)->str: # text
    if isinstance(value, Spread): return number(value.median) + (f' ({number(value.low)}–{number(value.high)})' if value.low<value.high else '')
    return str(value) if isinstance(value, (str, int)) else number(value)

def markdown(
    columns:tuple, # names
    rows:list, # of tuples
)->str: # a markdown table whose columns line up
    texts = [[cell(c) for c in row] for row in (columns, *rows)]
    widths = [max(map(len, column)) for column in zip(*texts)]
    texts.insert(1, ['-'*w for w in widths])
    return '\n'.join('| ' + ' | '.join(t.ljust(w) for t,w in zip(line, widths)) + ' |' for line in texts)

def render(
    table:Table, # one topic's table
)->str: # markdown
    return f'### {table.title}\n\n{markdown(table.columns, table.rows)}\n' + (f'\n{table.note}\n' if table.note else '')

def goal_row(
    goal:Goal, # with one limit
)->tuple: # what, wanted, measured, verdict on the median
    low = goal.at_least is not None
    limit,value = goal.at_least if low else goal.at_most,goal.measured.median
    reached = value>=limit if low else value<=limit
    return goal.what,f'{"≥" if low else "≤"} {limit:g}',goal.measured,'reached' if reached else 'missed'

def goals_table(
    tables:list, # of `Table`
)->Table: # all their goals
    goals = [goal for table in tables for goal in table.goals]
    return Table('What it must show', ('what', 'wanted', 'measured', 'median'), [goal_row(g) for g in goals])

def available(
    module:str, # name to import
)->bool:
    "Is a library installed"
    return find_spec(module) is not None

# machine

def cpu_facts()->tuple: # model name, flags
    "What the processor says of itself; without /proc only what Python knows"
    info = Path('/proc/cpuinfo')
    text = info.read_text() if info.exists() else ''
    facts = dict((part.strip() for part in line.split(':', 1)) for line in text.splitlines() if ':' in line)
    return facts.get('model name') or platform.processor() or platform.machine(),(facts.get('flags') or facts.get('Features') or '').split()

def load()->float: # processes that want a core, mean of the last minute; 0 where the system does not tell
    return os.getloadavg()[0] if hasattr(os, 'getloadavg') else 0.

def package_version(
    name:str, # as pip calls it
)->str:
    try: return version(name)
    except PackageNotFoundError: return 'not installed'

def machine()->Table:
    "Where and with what the numbers were made"
    import torch
    model,flags = cpu_facts()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    known = [f for f in instruction_sets if f in flags]
    rows = [('date', date.today().isoformat()), ('processor', f'{model}, {cores} cores'), ('instruction sets', ', '.join(known) or 'unknown'),
            ('torch', f'{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}'),
            ('system', f'{platform.system()} {platform.machine()}, Python {platform.python_version()}'),
            ('other load at the start', f'{load():.1f} processes'),
            ('versions', ', '.join(f'{p} {package_version(p)}' for p in packages))]
    return Table('Machine', ('what', 'value'), rows)

# subprocesses

def child(
    *arguments:str, # of the Python interpreter, run in the project's folder
)->dict: # what it printed last, as JSON
    "Run Python anew; an error of the child is an error here"
    done = subprocess.run([sys.executable, *arguments], cwd=root, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().splitlines() or [f'code {done.returncode}']
        raise RuntimeError(f'{" ".join(arguments)} failed: {reason[-1]}')
    return json.loads(done.stdout.strip().splitlines()[-1])

def held_memory()->int: # bytes this process holds; where the system does not tell, the most it has ever held
    "Start to watch: after this, `peak_memory` knows only what is new"
    if not Path('/proc/self/clear_refs').exists(): return peak_memory()
    Path('/proc/self/clear_refs').write_text('5') # peak := now
    return peak_memory()

def peak_memory()->int: # bytes
    "The most this process has held; Linux hands `ru_maxrss` down from parent to child, so there it is read from /proc"
    status = Path('/proc/self/status')
    if status.exists(): return 1024*next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith('VmHWM'))
    import resource # not on Windows
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*(1 if sys.platform=='darwin' else 1024)
