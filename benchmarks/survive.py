"""SIGKILL at random moments: python -m benchmarks.survive [--kills 20] [--seed 0]

A short training of a P-model is killed, then started again with resume=True: the final weights have to be those of a training that nobody killed,
bit for bit. A set that is read into the cache is killed as well: the next start has to give the right faces, and nothing may be left over.
Processes are forked, which Windows cannot do."""
import argparse
import contextlib
import os
import random
import signal
import tempfile
import time
import traceback
from itertools import count
from pathlib import Path

import torch
from fastai.vision.all import set_seed
from torch import nn

from fer_perturb.augment import FaceAugment
from fer_perturb.learner import perturb_learner
from fer_perturb.loaders import face_block
from fer_perturb.readers import load_faces
from fer_perturb.toyfaces import toy_faces
from fer_perturb.writers import write_csv

class Noise(nn.Module):
    "Stands for attention"
    def saliency_maps(self, images, *args): return (images[:, 0].float()*(1 if images.dtype==torch.uint8 else 255)).byte()

def train(folder, faces, recipe, epochs):
    "The training that is killed; it leaves its weights in final.pt"
    set_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(.2), nn.Linear(128, 7))
    dls = face_block(batch_tfms=[FaceAugment()]).dataloaders(faces, bs=16, device='cpu')
    learn = perturb_learner(dls, model, Noise(), perturb='foreign')
    with learn.no_bar(), learn.no_logging(): getattr(learn, recipe)(epochs, .01, checkpoint=folder, resume=True)
    torch.save([t.clone() for t in learn.model.state_dict().values()], folder/'final.pt')

def read(path, cache):
    "The reading that is killed"
    os.environ['FER_PERTURB_CACHE'] = str(cache)
    with contextlib.redirect_stdout(None): return load_faces(path)

def started(f, *args):
    "The number of a process that does this and ends"
    pid = os.fork()
    if pid: return pid
    try: f(*args)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

def ended(pid): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def killed(f, args, seconds):
    "Was it killed before it was done?"
    pid = started(f, *args)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return ended(pid)==-signal.SIGKILL

def killed_until(kills, seed, base, f, arguments, seconds):
    "Kill `f` at random moments, each time with a folder of its own, until `kills` came before its end; yields the folder of each try"
    rng,in_time = random.Random(seed),0
    for number in count():
        if in_time==kills: return
        folder = base/f'try{number}'
        in_time += killed(f, arguments(folder), rng.random()*seconds)
        yield folder

def seconds_of(f, *args):
    start = time.perf_counter()
    if ended(started(f, *args)): raise RuntimeError(f'{f.__name__} fails without being killed')
    return time.perf_counter()-start

def trainings(kills, seed=0, recipe='fit_quick', epochs=4):
    "How many trainings end with the right weights, of how many, until `kills` of them were killed before their end"
    base,faces = Path(tempfile.mkdtemp()),toy_faces(175)
    torch.set_num_threads(1)
    whole = base/'whole'
    seconds_of(train, base/'first', faces, recipe, epochs) # the first one in a process is slower
    length = seconds_of(train, whole, faces, recipe, epochs)
    expected,right = torch.load(whole/'final.pt'),[]
    for folder in killed_until(kills, seed, base, train, lambda folder: (folder, faces, recipe, epochs), length):
        again = ended(started(train, folder, faces, recipe, epochs))
        found = torch.load(folder/'final.pt') if not again else []
        left = [p.name for p in folder.iterdir() if p.name not in ('training.pt', 'final.pt')]
        right.append(len(found)==len(expected) and not left and all(torch.equal(a, b) for a,b in zip(found, expected)))
    return sum(right),len(right)

def readings(kills, seed=0, n=2800):
    "How many sets are right when they are read again, with nothing left over, of how many, until `kills` readings were killed before their end"
    base,faces = Path(tempfile.mkdtemp()),toy_faces(n)
    write_csv(faces, base/'faces.csv')
    seconds_of(read, base/'faces.csv', base/'first')
    length = seconds_of(read, base/'faces.csv', base/'whole')
    kept,right = sorted(p.suffix for p in (base/'whole').rglob('*') if p.is_file()),[]
    for cache in killed_until(kills, seed, base, read, lambda cache: (base/'faces.csv', cache), length):
        found = read(base/'faces.csv', cache)
        left = sorted(p.suffix for p in cache.rglob('*') if p.is_file())
        right.append(torch.equal(found.images, faces.images) and torch.equal(found.labels, faces.labels) and left==kept)
    return sum(right),len(right)

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=20)
    parser.add_argument('--seed', type=int, default=0)
    options = parser.parse_args()
    results = {f'trainings, {recipe}': trainings(options.kills, options.seed, recipe) for recipe in ('fit_quick', 'fit_paper', 'fit_one_cycle')}
    results['readings into the cache'] = readings(options.kills, options.seed)
    for name,(right,tries) in results.items(): print(f'{name}: {right} of {tries} right, {options.kills} of them killed before their end')
    return int(any(right<tries for right,tries in results.values()))

if __name__=='__main__': raise SystemExit(main())
