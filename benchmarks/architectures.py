"Which of timm's networks take faces of 48 pixels: `python -m benchmarks.architectures [--n 100] [--seed 0] [--out FILE]`"
import argparse
import random
import time
import warnings
from collections import Counter

import timm
import torch

from fer_perturb.attention import has_attention
from fer_perturb.learner import attention_learner, face_learner
from fer_perturb.loaders import face_block
from fer_perturb.saliency import saliency_maps
from fer_perturb.toyfaces import toy_faces

largest = 60e6 # parameters

def size_of(
    name:str, # of a timm model
)->int: # parameters, counted without memory where that works
    "How large a network is"
    for device in ('meta', 'cpu'):
        try:
            with torch.device(device): return sum(p.numel() for p in timm.create_model(name).parameters())
        except Exception: pass
    return 0

def draw(
    n:int, # networks wanted
    seed:int, # of the draw
)->list: # names, in the order of the draw
    "Networks from timm's list, those above 60 million parameters left out"
    names = timm.list_models()
    random.Random(seed).shuffle(names)
    found = []
    for name in names:
        if len(found)==n: break
        if size_of(name)<largest: found.append(name)
    return found

def loaders(
    n:int=6, # training faces, one batch
): # `DataLoaders`
    "A batch of toy faces, and as many to validate on"
    return face_block().dataloaders(toy_faces(70)[[*range(n), *range(56, 56+2)]], bs=n, device='cpu')

def one_step(learn):
    "A training step, and an answer"
    before = [p.detach().clone() for p in learn.model.parameters()]
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert any(not torch.equal(a, b) for a,b in zip(before, learn.model.parameters())), 'no weight has moved'

def attempt(
    what, # function without arguments
)->str: # 'works', 'refuses', or the raw error
    "What happens; a refusal is a ValueError of this package, before any training"
    try: learn = what()
    except ValueError as e: return f'refuses: {e}'
    except Exception as e: return f'dies: {type(e).__name__}: {e}'
    try:
        one_step(learn)
        if has_attention(learn.model):
            maps = saliency_maps(learn, learn.dls.train.data.images[:2,None])
            assert maps.shape==(2, 48, 48), maps.shape
    except Exception as e: return f'dies: {type(e).__name__}: {e}'
    return 'works'

def row(
    name:str, # of a timm model
    dls, # `DataLoaders`
)->dict: # plain: what a baseline does; attention: what phase 1 does; said: a warning
    "One network"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        plain = attempt(lambda: face_learner(dls, name, cbs=[]))
        attention = attempt(lambda: attention_learner(dls, name)) if plain=='works' else ''
    enlarged = any('enlarged' in str(w.message) for w in said)
    return dict(name=name, plain=plain, attention=attention, enlarged=enlarged)

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--n', type=int, default=100, help='networks')
    parser.add_argument('--seed', type=int, default=0, help='of the draw')
    parser.add_argument('names', nargs='*', help='these instead of a draw')
    args = parser.parse_args()
    names,dls,rows = args.names or draw(args.n, args.seed),loaders(),[]
    for name in names:
        start = time.monotonic()
        rows.append(row(name, dls))
        r = rows[-1]
        print(f'{name:45} {r["plain"][:150]}{" (enlarged)"*r["enlarged"]} | {r["attention"][:110]} ({time.monotonic()-start:.0f} s)', flush=True)
    for part in ('plain', 'attention'): print(part, dict(Counter(r[part].split(':')[0] for r in rows if r[part])))
    print('enlarged inside the model:', sum(r['enlarged'] for r in rows))

if __name__=='__main__': main()
