"""The paper's Table 1 on real faces: what a mask costs a network that was trained without masks, and one that was trained with them

`python -m benchmarks.table1 fer2013.zip --reference maskfer.zip`. Trained networks and masked faces are kept in the folder `--out`, and another call
goes on from there. Landmarks come from `find_landmarks`, which needs the `[masks]` extra to find real ones."""
import argparse
import time
from pathlib import Path

import pandas as pd
import torch
from fastai.vision.all import Learner, set_seed

from fer_perturb.data import USAGES
from fer_perturb.evaluate import accuracy_change, occlusion_table, predict_faces, summary_table
from fer_perturb.masks import maskfer
from fer_perturb.quality import twin_elsewhere
from fer_perturb.readers import load_faces, read_faces, save_faces, write_beside

from .training import quick_learner

def trained(
    make, # callable without arguments that returns a new Learner
    fit, # callable that trains it
    path:Path, # file with the weights, written after the training; if it is there, it is read instead
    seed:int, # of everything random
    start:Path=None, # file with weights to start from
)->Learner:
    "A learner with the weights in `path`, trained if need be"
    set_seed(seed)
    learn = make()
    def load(file): learn.model.load_state_dict(torch.load(file, map_location='cpu'))
    if path.exists():
        load(path)
        return learn
    if start: load(start)
    begin = time.perf_counter()
    fit(learn)
    print(f'{path.stem}: {(time.perf_counter()-begin)/60:.1f} minutes', flush=True)
    with write_beside(path) as part: torch.save(learn.model.state_dict(), part)
    return learn

def report(
    sets:dict, # {name: FERData}, the same faces in each, 'clean' first
    learners:dict, # {name: Learner}
    usage:str, # one of `USAGES`
)->str: # tables
    "Accuracy on each set, with and without the images that also occur in another part; then Table 1 for each kind of mask"
    clean = sets['clean']
    labels,alone = clean.part(usage).labels,~twin_elsewhere(clean)[clean.usage.cpu()==USAGES.index(usage)]
    found = {s: {name: predict_faces(learn, data.part(usage)) for name,learn in learners.items()} for s,data in sets.items()}
    text = [f'=== {usage}, {len(labels):,} images']
    for s,probabilities in found.items():
        text += [f'{s}\n{summary_table(probabilities, labels).to_string()}',
                 f'without twins ({int(alone.sum()):,})\n{summary_table({n: p[alone] for n,p in probabilities.items()}, labels[alone]).to_string()}']
    for s in [*sets][1:]: text.append(f'Table 1: {s}, minus clean\n{occlusion_table(found["clean"], found[s], labels, clean.vocab).to_string()}')
    if 'reference' in sets:
        for name in learners:
            change,low,high = accuracy_change(found['reference'][name], found['ours'][name], labels)
            text.append(f"{name}: on our masks minus on the reference's {change:+.1f} points (95 % interval {low:+.1f} to {high:+.1f})")
    return '\n\n'.join(text)

def main():
    parser = argparse.ArgumentParser('python -m benchmarks.table1', description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path, help='FER2013 in any form that load_faces reads')
    parser.add_argument('--reference', type=Path, help='the same faces, masked by somebody else')
    parser.add_argument('--arch', default='slim_resnet18')
    parser.add_argument('--epochs', type=int, default=16)
    parser.add_argument('--seed', type=int, default=42)
    parser.add_argument('--out', type=Path, default=Path('table1'), help='folder for networks and masked faces')
    args = parser.parse_args()
    sets,masked = dict(clean=load_faces(args.data)),args.out/'masked.npz'
    if not masked.exists(): save_faces(maskfer(sets['clean'], seed=args.seed), masked)
    sets['ours'] = read_faces(masked)
    if args.reference: sets['reference'] = load_faces(args.reference)
    for name,data in sets.items():
        if list(data.names)!=list(sets['clean'].names): raise SystemExit(f'{name} does not hold the same faces in the same order as {args.data}')
    further = max(1, args.epochs//3)
    def path(s): return args.out/f'{args.arch}-{args.epochs}-{args.seed}-{s}.pth'
    def plain(s, to, fit, **kwargs): return trained(lambda: quick_learner(sets[s], args.arch), fit, path(to), args.seed, **kwargs)
    def quick(learn): learn.fit_quick(args.epochs)
    def gentle(learn): learn.fit_quick(further, 0.02)
    learners = {'trained on FER2013': plain('clean', 'clean', quick), 'trained on MaskFer': plain('ours', 'ours', quick),
                f'FER2013, then {further} epochs of MaskFer': plain('ours', 'then', gentle, start=path('clean'))}
    pd.set_option('display.width', 250, 'display.max_columns', 20)
    for usage in USAGES[1:]: print(f'\n{report(sets, learners, usage)}')

if __name__=='__main__': main()
