"""Which saliency maps can be believed: baseline and P-model of several seeds, judged by `fer_perturb.judge`

`python -m benchmarks.judged FOLDER --data fer2013.zip --landmarks fer2013_landmarks.npz` trains in the folder what is not there yet (a quarter of Training,
twelve epochs; half an hour of one core for three seeds) and prints means and ranges over the seeds. Without `--data` it does so for toy faces, where the true region
is known, in a few minutes."""
import argparse
from functools import cache
from pathlib import Path

import pandas as pd

from fer_perturb.experiments import train_runs, trained_learner
from fer_perturb.judge import expression_pixels, judge
from fer_perturb.landmarks import landmark_regions
from fer_perturb.material import find_material
from fer_perturb.records import Place
from fer_perturb.runs import Run

from .common import markdown

fer2013 = dict(part=.25, epochs=12, phase1_epochs=4, optimizer='muon', bs=128)
toys = dict(faces='toy 2800', epochs=12, phase1_epochs=6, optimizer='muon', bs=64, augment='mirror')

def faces_and_truth(material, toy, n):
    "Faces of PublicTest with their regions, and what an expression changes where that is known"
    rows = material.rows['PublicTest'][:n]
    faces = material.faces[rows]
    if toy: return faces, expression_pixels(material.faces.labels.cpu())[rows]
    return faces.with_columns(regions=landmark_regions(material.points(rows), faces.images.shape[-1])), None

def over_seeds(
    tables:list, # of `judge`, one a seed
)->pd.DataFrame: # text: mean (lowest–highest)
    "Means, and how far the seeds lie apart"
    stacked = pd.concat(tables, keys=range(len(tables))).groupby(level=[1,2], sort=False)
    mean,low,high = (getattr(stacked, f)() for f in ('mean', 'min', 'max'))
    def text(m, l, h): return '–' if pd.isna(m) else f'{m:.2f} ({l:.2f}–{h:.2f})'
    return pd.DataFrame({c: [text(*x) for x in zip(mean[c], low[c], high[c])] for c in mean}, index=mean.index)

def main(
    arguments:list=None, # command line; that of the process if None
):
    parser = argparse.ArgumentParser('python -m benchmarks.judged', description=__doc__)
    parser.add_argument('folder', type=Path, help='where trainings are kept')
    parser.add_argument('--data', type=Path, help='FER2013 in any form (default: toy faces)')
    parser.add_argument('--landmarks', type=Path, help='npz with the landmarks of the faces')
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--faces', type=int, default=500, help='of PublicTest, that are judged')
    args = parser.parse_args(arguments)
    place,settings = Place(args.folder/'results', args.folder/'work'),fer2013 if args.data else toys
    material = cache(lambda name: find_material(name, args.data, landmarks=args.landmarks))
    kinds = dict(baseline='plain', P='own')
    runs = [{name: Run(form, seed, **settings) for name,form in kinds.items()} for seed in range(args.seeds)]
    if failed := train_runs([r for pair in runs for r in pair.values()], material, place, device='cpu'):
        raise SystemExit(f'{len(failed)} trainings failed: each says why in {args.folder}/work/*/error.txt')
    whole = material(runs[0]['baseline'].faces)
    faces,truth = faces_and_truth(whole, not args.data, args.faces)
    table = over_seeds([judge({name: trained_learner(r, whole, place) for name,r in pair.items()}, faces, truth) for pair in runs])
    print(markdown(('network', 'map', *table), [(*index, *row) for index,row in zip(table.index, table.values)]))

if __name__=='__main__': main()
