"""Minutes to an accuracy on FER2013's PublicTest: vanilla fastai against `fit_quick`

Both train at the same time, each on half of the cores: `python -m benchmarks.accuracy fer2013.zip`. That takes an hour or more, so it is no part of
`make bench`. What has been trained is kept in the folder `--out`, and another call goes on from there."""
import argparse
import csv
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import timm
import torch
from fastai.vision.all import (Callback, CategoryBlock, DataBlock, FuncSplitter, ImageBlock, Learner, PILImageBW, Recorder, accuracy, aug_transforms,
                               get_image_files, parent_label, set_seed)

from fer_perturb.readers import load_faces, write_beside

from .common import markdown
from .training import quick_learner

def fastai_learner(
    data:Path, # the zip file from Kaggle
    out:Path, # gets the files
)->Learner: # as in fastai's own tutorials: files, workers, timm's ResNet-18, default augmentations
    folder = out/'files'
    if not folder.exists():
        with write_beside(folder) as part, zipfile.ZipFile(data) as z: z.extractall(part)
    files = [p for p in get_image_files(folder) if not p.name.startswith('PrivateTest')]
    block = DataBlock((ImageBlock(PILImageBW), CategoryBlock), get_items=lambda _: files, get_y=parent_label, batch_tfms=aug_transforms(),
                      splitter=FuncSplitter(lambda p: p.name.startswith('PublicTest')))
    dls = block.dataloaders(folder, bs=64, num_workers=0, device='cpu')
    return Learner(dls, timm.create_model('resnet18', in_chans=1, num_classes=7), metrics=accuracy)

def our_learner(
    data:Path, # FER2013 in any form that `load_faces` reads
    out:Path, # not needed
)->Learner: # see `quick_learner`
    return quick_learner(load_faces(data), device='cpu')

# name: (makes the learner, trains it, epochs)
recipes = {'fastai': (fastai_learner, lambda learn, n: learn.fit_one_cycle(n), 22),
           'ours': (our_learner, lambda learn, n: learn.fit_quick(n), 16)}

class Clock(Callback):
    "After every epoch, write down epoch, minutes and processor minutes since the start of the training, and accuracy in %"
    order = Recorder.order+1 # it has the epoch's metrics by then
    def __init__(self,
        log:Path, # CSV file
    ): self.log = log
    def before_fit(self): self.start = time.perf_counter(),time.process_time()
    def after_epoch(self):
        score = self.recorder.values[-1][self.recorder.metric_names.index('accuracy')-1] # the names begin with the epoch
        minutes,processor = ((now-start)/60 for now,start in zip((time.perf_counter(),time.process_time()), self.start))
        with self.log.open('a', newline='') as f: csv.writer(f).writerow([self.epoch+1, minutes, processor, 100*score])

def train(
    recipe:str, # key of `recipes`
    data:Path, # FER2013
    out:Path, # gets RECIPE-SEED.csv when the training is over
    seed:int=42, # of everything random
):
    "What a child does"
    make,fit,epochs = recipes[recipe]
    set_seed(seed)
    learn = make(data, out)
    with write_beside(out/f'{recipe}-{seed}.csv') as part, learn.no_bar(), learn.no_logging():
        learn.add_cb(Clock(part))
        fit(learn, epochs)

def table(
    out:Path, # folder of `train`
    target:float, # accuracy in %
    seed:int=42, # of `train`
)->str: # markdown
    "When each recipe reached the target"
    rows = []
    for recipe in recipes:
        with (out/f'{recipe}-{seed}.csv').open() as f: epochs,minutes,processor,scores = zip(*(map(float, row) for row in csv.reader(f)))
        first = next((i for i,s in enumerate(scores) if s>=target), None)
        rows.append((recipe, len(epochs), f'{max(scores):.1f}', *(f'not in {m[-1]:.0f}' if first is None else m[first] for m in (minutes, processor))))
    return markdown(('recipe', 'epochs', 'best, %', f'minutes to {target:g} %', 'of a processor'), rows)

def main():
    parser = argparse.ArgumentParser('python -m benchmarks.accuracy', description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path, help='the zip file from Kaggle')
    parser.add_argument('--target', type=float, default=64., help='accuracy in %%')
    parser.add_argument('--seed', type=int, default=42)
    parser.add_argument('--out', type=Path, default=Path('accuracy'), help='folder for files and logs')
    parser.add_argument('--recipe', choices=recipes, help='train this one, here and now')
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.recipe: return train(args.recipe, args.data, args.out, args.seed)
    environment = os.environ | {'OMP_NUM_THREADS': str(max(1, torch.get_num_threads()//len(recipes)))}
    runs = [subprocess.Popen([sys.executable, '-m', 'benchmarks.accuracy', args.data, '--out', args.out, '--seed', str(args.seed), '--recipe', r], env=environment)
            for r in recipes if not (args.out/f'{r}-{args.seed}.csv').exists()]
    if any([run.wait() for run in runs]): raise SystemExit('a training failed: see above')
    print(table(args.out, args.target, args.seed))

if __name__=='__main__': main()
