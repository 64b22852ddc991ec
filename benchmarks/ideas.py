"""Ideas that could make the quick recipe cheaper, each trained once a seed

`python -m benchmarks.ideas fer2013.zip --out FOLDER` trains on one core what is not in the folder yet, seed by seed, and prints the table. Time is
that of the processor, validation included, as a multiple of ten epochs of the recipe that is kept. That takes hours, so it is no part of `make bench`."""
import argparse
import json
import time
from functools import partial
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
from fastai.vision.all import Callback, OptimWrapper, set_seed
from timm.optim import Muon
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from fer_perturb.augment import FaceAugment
from fer_perturb.data import FERData
from fer_perturb.evaluate import predict_faces
from fer_perturb.learner import SmallFirst, face_learner, quick_augment, sgd
from fer_perturb.readers import load_faces, write_beside
from fer_perturb.records import hardware

from .common import markdown
from .training import face_loaders

class Sizes(Callback):
    "Smaller images at first, in place of the recipe's 36 pixels in the first 40 % of the epochs"
    order,run_valid = SmallFirst.order,False
    def __init__(self,
        until:dict, # {share of the epochs: side of the images in pixels}
    ): self.until = until
    def before_fit(self): self.learn.cbs = self.learn.cbs.filter(lambda cb: not isinstance(cb, SmallFirst))
    def before_batch(self):
        size = next((size for share,size in self.until.items() if self.epoch<share*self.n_epoch), 48)
        if size<48: self.learn.xb = (F.interpolate(self.xb[0].as_subclass(torch.Tensor), size, mode='bilinear', antialias=True),)

class Alternate(Callback):
    "Each face is mirrored every second epoch, instead of at random; half of them begin mirrored"
    def before_fit(self): self.turn(torch.rand(len(self.dls.train.data))<0.5)
    def before_epoch(self):
        if self.epoch: self.turn(slice(None))
    def turn(self, rows):
        data = self.dls.train.data
        images = data.images # a copy
        images[rows] = images[rows].flip(-1)
        data.set_rows('images', images)

class Average(Callback):
    "Evaluate a running mean of the weights"
    def before_fit(self): self.mean = AveragedModel(self.model, avg_fn=get_ema_avg_fn(0.995), use_buffers=True)
    def after_batch(self):
        if self.training: self.mean.update_parameters(self.model)
    def after_fit(self): self.learn.model.load_state_dict(self.mean.module.state_dict())

class Hardest(Callback):
    "In the middle of the training, learn from the harder half of a batch that is twice as large"
    run_valid = False
    def before_batch(self):
        if not 0.2*self.n_epoch<=self.epoch<0.7*self.n_epoch: return
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
            loss = F.cross_entropy(self.model(self.xb[0]).float().as_subclass(torch.Tensor), self.yb[0].as_subclass(torch.Tensor), reduction='none')
        rows = loss.topk(len(loss)//2).indices
        self.learn.xb,self.learn.yb = (self.xb[0][rows],),(self.yb[0][rows],)

def whiten(model, images):
    "Eigenvectors of patches, both signs, as the first filters, scaled to whiten"
    patches = F.unfold(images[:2000,None].float()/255, 3).transpose(1, 2).reshape(-1, 9)
    values,vectors = torch.linalg.eigh((patches-patches.mean(0)).T.cov())
    filters = (vectors/(values+5e-4).sqrt()).T.reshape(-1, 1, 3, 3)
    both = torch.cat([filters, -filters])
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    with torch.no_grad(): first.weight[:len(both)] = both/both.flatten(1).norm(dim=1).max()*first.weight.flatten(1).norm(dim=1).mean()

def identity(model, images):
    "The second convolution of a block and its like begin as the identity"
    for m in model.modules():
        if isinstance(m, nn.Conv2d) and m.kernel_size==(3, 3) and m.in_channels>1:
            with torch.no_grad(): nn.init.dirac_(m.weight[:m.in_channels])

def biases_apart(model):
    "Weights, and biases"
    named = list(model.named_parameters())
    return [[p for n,p in named if not n.endswith('bias')], [p for n,p in named if n.endswith('bias')]]

def muon(params, lr=0.004, **kwargs): return OptimWrapper(params, opt=partial(Muon, adjust_lr_fn='match_rms_adamw'), lr=lr)

def in_turn(movement=1.):
    "Faces that are mirrored in turn, with some of the usual rotation, zoom and shift"
    return [FaceAugment(10*movement, 1+.1*movement, .083*movement, max_lighting=0, flip=False)]

best = dict(bs=128, lr=.012, opt_func=muon)
in_eight = dict(cbs=[Alternate, partial(Sizes, {.4: 36})], tfms=in_turn) # small images first, however few epochs there are
# name: what differs from the quick recipe; all after the fifth stand on Muon with a rate of 0.012
ideas = {'SGD, batches of 64, rate 0.06': dict(),
         'batches of 128, rate 0.24': dict(bs=128, lr=.24),
         'Muon, rate 0.004': dict(bs=128, lr=.004, opt_func=muon),
         'Muon, rate 0.012': best,
         'Muon, rate 0.03': dict(bs=128, lr=.03, opt_func=muon),
         '32, 40, then 48 pixels': dict(**best, cbs=[partial(Sizes, {.4: 32, .7: 40})]),
         '36 pixels in 70 % of the epochs': dict(**best, cbs=[partial(Sizes, {.7: 36})]),
         'alternating flip': dict(**best, cbs=[Alternate], tfms=in_turn),
         'alternating flip, 36 pixels in 40 % of the epochs': dict(**best, **in_eight),
         'the same, rate 0.02': dict(**best | dict(lr=.02), **in_eight),
         'the same, half of the movement': dict(**best, **in_eight | dict(tfms=partial(in_turn, .5))),
         'running mean of the weights': dict(**best, cbs=[Average]),
         'whitening first filters': dict(**best, begin=whiten),
         'identity at the start': dict(**best, begin=identity),
         'harder half of a batch': dict(**best | dict(bs=256), cbs=[Hardest]),
         'biases learn eight times as fast': dict(**best | dict(lr=slice(.012, 8*.012)), splitter=biases_apart)}

def learner(
    data:FERData, # FER2013
    idea:dict, # of `ideas`
): # ready for `fit_quick`
    own = data.with_columns(images=data.images.clone()) # which `Alternate` mirrors
    dls = face_loaders(own, idea.get('bs', 64), idea.get('tfms', quick_augment)())
    learn = face_learner(dls, 'slim_resnet18', cbs=[cb() for cb in idea.get('cbs', [])], **{k: idea[k] for k in ('splitter',) if k in idea})
    if 'begin' in idea: idea['begin'](learn.model, dls.train.data.images)
    return learn

def train(
    data:FERData, # FER2013
    idea:dict, # of `ideas`
    epochs:int, # of the whole schedule
    seed:int, # of everything random
)->dict: # hardware, minutes, accuracy, with_mirror (both in %), curve
    set_seed(seed)
    learn = learner(data, idea)
    begin = time.process_time()
    with learn.no_bar(), learn.no_logging():
        learn.fit_quick(epochs, idea.get('lr'), opt_func=idea.get('opt_func', sgd))
    minutes,curve = (time.process_time()-begin)/60,[float(v[2]) for v in learn.recorder.values]
    test = data[torch.where(data.usage==1)[0]]
    found = [predict_faces(learn, test.with_columns(images=images)) for images in (test.images, test.images.flip(-1))]
    right = [100*(p.argmax(1)==test.labels).float().mean().item() for p in (found[0], found[0]+found[1])]
    return dict(hardware=hardware('cpu'), minutes=minutes, accuracy=right[0], with_mirror=right[1], curve=curve)

def stem(name): return name.replace(' ', '_').replace(',', '').replace('%', 'percent')

def kept(out, name, epochs, seed): return out/f'{stem(name)}-{epochs}-{seed}.json'

def table(
    out:Path, # folder of the results, or of one such folder for each machine
)->str: # markdown
    "What each idea costs, beside the recipe that is kept on the same processor, and what it reaches"
    found = {name: [(int(p.stem.split('-')[-2]), json.loads(p.read_text())) for p in sorted(out.rglob(f'{stem(name)}-*-*.json'))] for name in ideas}
    recipe = [f for epochs,f in found['Muon, rate 0.012'] if epochs==10]
    unit = {h: mean(f['minutes'] for f in recipe if f['hardware']==h) for h in {f['hardware'] for f in recipe}}
    rows = []
    for name in ideas:
        for epochs in sorted({e for e,_ in found[name]}):
            of = [f for e,f in found[name] if e==epochs]
            cost = [f['minutes']/unit[f['hardware']] for f in of if f['hardware'] in unit]
            rows.append((name, epochs, len(of), f'{mean(cost):.2f}' if cost else '–',
                *(f'{mean(f[k] for f in of):.1f} ({", ".join(f"{f[k]:.1f}" for f in of)})' for k in ('accuracy', 'with_mirror'))))
    return markdown(('idea', 'epochs', 'trainings', 'time', 'PublicTest %', 'mirror image averaged %'), rows)

def main(
    arguments:list=None, # command line; that of the process if None
):
    parser = argparse.ArgumentParser('python -m benchmarks.ideas', description=__doc__)
    parser.add_argument('data', type=Path, help='FER2013 in any form that load_faces reads')
    parser.add_argument('--out', type=Path, required=True, help='folder for what has been trained')
    parser.add_argument('--epochs', type=int, nargs='+', default=[10])
    parser.add_argument('--seeds', type=int, default=2)
    parser.add_argument('--only', nargs='+', choices=ideas, default=list(ideas), metavar='IDEA')
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    data = load_faces(args.data)
    for seed in range(args.seeds):
        for epochs in args.epochs:
            for name in args.only:
                path = kept(args.out, name, epochs, seed)
                if path.exists(): continue
                found = train(data, ideas[name], epochs, seed)
                print(f'{name}, {epochs} epochs, seed {seed}: {found["minutes"]:.1f} minutes, {found["accuracy"]:.1f} %, with mirror image {found["with_mirror"]:.1f} %', flush=True)
                with write_beside(path) as part: part.write_text(json.dumps(found))
    print(table(args.out))

if __name__=='__main__': main()
