"Every comparison, one after the other: `python -m benchmarks.run`, which `make bench` calls"
import argparse
import importlib
import time
import traceback
from pathlib import Path

from .common import Settings, goals_table, load, machine, render, root

topics = ('imports', 'kmeans', 'loader', 'training', 'epoch', 'growth')
introduction = '''# Benchmarks

Made by `make bench`. Competitors take turns (A B C A B C …) in one run; a value is the median over the rounds, in brackets the lowest and the
highest. Ratios are formed within a round before the median is taken. They carry over to other machines better than seconds do.
'''

def parse(
    arguments:list=None, # command line; that of the process if None
)->argparse.Namespace:
    parser = argparse.ArgumentParser('python -m benchmarks.run', description=__doc__)
    parser.add_argument('--only', nargs='+', choices=topics, default=topics, help='topics to run')
    parser.add_argument('--quick', action='store_true', help='small and few: proves that all runs, measures nothing')
    parser.add_argument('--data', type=Path, help='FER2013 in any form that load_faces reads, instead of toy faces')
    parser.add_argument('--out', type=Path, help='file for the tables; benchmarks/results.md for a whole run, otherwise none')
    parser.add_argument('--profile', action='store_true', help='also show what remains in a training step')
    args = parser.parse_args(arguments)
    if args.out is None and not args.quick and tuple(args.only)==topics: args.out = root/'benchmarks'/'results.md'
    return args

def run_topic(
    topic:str, # one of `topics`
    settings:Settings,
)->tuple: # its tables, and the last line of the error or None
    "One topic; if it breaks, the others still run"
    start = time.perf_counter()
    print(f'## {topic}\n', flush=True)
    try: tables,error = importlib.import_module(f'.{topic}', __package__).tables(settings),None
    except Exception as e: tables,error = [],f'{topic} failed: {type(e).__name__}: {e}'; traceback.print_exc()
    for table in tables: print(render(table))
    print(f'({topic}: {time.perf_counter()-start:.0f} s)\n', flush=True)
    return tables,error

def main(
    arguments:list=None, # command line; that of the process if None
):
    args = parse(arguments)
    from fastai.torch_core import default_device
    default_device(False) # the comparisons are about the CPU
    settings = Settings(args.quick, args.data)
    start,facts = time.perf_counter(),machine()
    print(render(facts), flush=True)
    if load()>1: print(f'The machine is busy ({load():.1f} processes): expect wide spreads\n', flush=True)
    if args.quick: print('Quick: the numbers below mean nothing\n', flush=True)
    tables,errors = [],[]
    for topic in args.only:
        found,error = run_topic(topic, settings)
        tables += found
        errors += [error] if error else []
    parts = [introduction, render(goals_table(tables)), *(f'**{e}**\n' for e in errors), *map(render, tables), render(facts)]
    if args.profile:
        from .training import profile
        parts.append(f"### What remains in a perturb step\n\n```text\n{profile(settings)}\n```\n")
        print(parts[-1])
    print(render(goals_table(tables)))
    print(f'{(time.perf_counter()-start)/60:.1f} minutes')
    if args.out:
        args.out.write_text('\n'.join(parts), encoding='utf-8')
        print(f'written to {args.out}')
    if errors: raise SystemExit('\n'.join(errors))

if __name__=='__main__': main()
