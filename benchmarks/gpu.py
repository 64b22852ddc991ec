"""What a GPU is good for, part by part: `bash benchmarks/gpu.sh DATA OUT` runs all of them, each with its own time limit

Each part writes OUT/PART.json as soon as it knows something. Where there is no GPU, or with --dry, all parts run small on the CPU: that proves
that they run, and measures nothing."""
import argparse
import json
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from fer_perturb.attention import add_attention
from fer_perturb.augment import FaceAugment
from fer_perturb.backbones import create_backbone
from fer_perturb.experiments import Outcome, write_faces, write_results
from fer_perturb.graphs import GraphTraining, train_together
from fer_perturb.kmeans import eq1_features, kmeans_plus_plus, lloyd
from fer_perturb.learner import attention_learner, face_learner, perturb_learner
from fer_perturb.loaders import face_block
from fer_perturb.material import Material, figure_4_claim, find_material, landmark_parts, network, run_maps
from fer_perturb.perturb import Scheme
from fer_perturb.readers import load_faces
from fer_perturb.records import Place, hardware, versions, write_json
from fer_perturb.runs import grids, run_title

root = Path(__file__).resolve().parent.parent
cuda = torch.cuda.is_available()
device = torch.device('cuda' if cuda else 'cpu')

def wait():
    if cuda: torch.cuda.synchronize()

def milliseconds(
    run, # function without arguments
    rounds:int=5, # of which the median counts
)->float: # after two rounds that do not count
    times = []
    for _ in range(rounds+2):
        wait()
        start = time.perf_counter()
        run()
        wait()
        times.append(1000*(time.perf_counter()-start))
    return sorted(times[2:])[rounds//2]

def cells(args):
    "The cells flagged `cuda`, each in its notebook"
    from IPython.core.interactiveshell import InteractiveShell
    found = {}
    for path in sorted((root/'nbs').glob('*.ipynb')):
        texts = [''.join(c['source']) for c in json.loads(path.read_text())['cells'] if c['cell_type']=='code']
        flagged = [bool(re.search(r'^#\|\s*cuda', t, re.M)) for t in texts]
        if not any(flagged) or not (cuda or args.dry): continue
        shell = InteractiveShell(colors='nocolor')
        for text,flag in zip(texts, flagged):
            if re.search(r'^#\|\s*(notest|slow|eval: *false)', text, re.M) or flag and not cuda: continue
            if not shell.run_cell(text).success: found[path.stem] = f'fails in {text.strip()[:80]!r}'; break
        else: found[path.stem] = f'{sum(flagged)} cells run'
    return found

def kmeans(args):
    "Eq. 1 and ten Lloyd steps for all training images, beside flash-kmeans and the time to read the points ten times"
    n = 300 if args.dry else 28709
    images,saliency = (torch.randint(0, 256, (n, 48, 48), dtype=torch.uint8, device=device) for _ in range(2))
    found = dict(images=n, features=milliseconds(lambda: eq1_features(images, saliency, Scheme.keep)))
    points,_ = eq1_features(images, saliency, Scheme.keep)
    start = kmeans_plus_plus(points, 3, generator=torch.Generator().manual_seed(0))
    block = torch.empty(2**(20 if args.dry else 30), dtype=torch.uint8, device=device)
    copy = 2*len(block)/milliseconds(lambda: block.clone())
    found |= dict(copied_GB_s=copy/1e6, memory_bound=10*points.numel()*4/copy)
    for name,compiled in dict(plain=False, compiled=True).items():
        if compiled and args.dry: continue
        found[f'ours, {name}'] = milliseconds(lambda: lloyd(points, start, n_iter=10, compiled=compiled))
    try: from flash_kmeans import batch_kmeans_Euclid
    except ImportError: return found
    found['flash-kmeans'] = milliseconds(lambda: batch_kmeans_Euclid(points, 3, max_iters=10, tol=-1., init_centroids=start))
    return found

def epochs(args):
    "Images a second of the loader, of a plain and of a P-epoch of the learners, and of recorded steps, one training and eight at once"
    data = load_faces(args.data)
    if args.dry: data = data[torch.arange(0, len(data), 100)]
    found,bs = {},32 if args.dry else 128
    dls = face_block(data.vocab, data.images.shape[-1], batch_tfms=[FaceAugment(max_lighting=0)]).dataloaders(data, bs=bs, device=device)
    data.to(device)
    n = len(dls.train_ds)
    found['loader'] = n/milliseconds(lambda: [None for _ in dls.train], 1)*1000
    phase1 = attention_learner(dls)
    for name,learn in dict(plain=face_learner(dls), P=perturb_learner(dls, attention=phase1)).items():
        with learn.no_bar(), learn.no_logging():
            learn.fit(1)
            found[f'{name} epoch of a learner'] = n/milliseconds(lambda: learn.fit(1), 1)*1000
    train = data.part('Training')
    for at_once in (1, 8):
        trainings = [GraphTraining(create_backbone('slim_resnet18').to(device), train, bs=bs, epochs=8, small_first=False) for _ in range(at_once)]
        for t in trainings: t.start_epoch()
        def epoch():
            for t in trainings: t.start_epoch()
        found[f'recorded steps, {at_once} at once'] = at_once*n/milliseconds(epoch, 1)*1000
    return found

def runs_of(args):
    "Does hiding help? All that is asked, seed by seed: main, regions, clusters, parts, forms, networks, fills, a tenth of the data"
    names = 'main', 'regions', 'clusters', 'parts', 'forms', 'backbones', 'fills', 'tenth'
    found = {name: grids[f'gpu_{name}']() for name in names}
    if args.dry:
        short = dict(epochs=1, bs=16, phase1_epochs=1)
        few = dict(main=slice(4), backbones=slice(-3, -2), clusters=slice(5, 6), parts=slice(6, 22, 4), fills=slice(1))
        found = {name: [replace(r, part=1., **short) for r in found[name][of]] for name,of in few.items()}
    return sorted({r.name: r for runs in found.values() for r in runs}.values(), key=lambda r: r.seed)

def training_of(run, material, maps=None):
    "A `GraphTraining` for a run"
    torch.manual_seed(run.seed)
    data = material.faces[material.training_rows(run.part)]
    net = network(run, len(data.vocab))
    if run.attend: add_attention(net)
    k = len(landmark_parts) if run.maps=='landmarks' else run.n_clusters
    return GraphTraining(net.to(device), data, run.form, maps, k, run.epochs, run.lr or .06*run.bs/64, run.bs,
                         small_first=None if run.arch=='slim_resnet18' else False, seed=run.seed)

class Grid:
    "Runs that share the card; each is written to OUT/runs as it ends, and what is written there or in `results` is not trained again"
    def __init__(self, args):
        self.material = find_material('fer2013', args.data, landmarks=args.landmarks)
        self.place,self.slots = Place(args.out, args.out/'work'),args.slots
        if args.dry:
            rows = torch.arange(0, len(self.material.faces), 100)
            given = self.material.given
            self.material = Material(self.material.faces[rows].with_columns(), None if given is None else given[rows])
        self.ready = ThreadPoolExecutor(1).submit(self.prepare) # masks are drawn while the first networks are trained
        self.networks,self.maps,self.begun = {},{},{}
    def prepare(self):
        "Draw the sets to test on, and write labels, parts and twins"
        write_faces(self.material, self.place)
        return self.material.sets
    def maps_of(self, run):
        "Cluster maps of the training images, what made them, and Figure 4's claim; once for all forms that hide by the same maps"
        if not run.needs_maps: return None,None,None
        key = replace(run, form='own', epochs=1)
        if key not in self.maps:
            maps,clusterer = run_maps(run, self.material, self.networks.get(run.phase1 and run.phase1.name), device)
            self.maps[key] = maps,clusterer,figure_4_claim(run, self.material, clusterer)
        return self.maps[key]
    def make(self, run):
        self.begun[run.name] = time.monotonic()
        return training_of(run, self.material, self.maps_of(run)[0])
    def keep(self, runs, number, training):
        run = runs[number]
        self.ready.result()
        _,clusterer,claim = self.maps_of(run)
        seconds = time.monotonic()-self.begun[run.name]
        known = dict(trainer='recorded steps', hardware=hardware(device), versions=versions(), minutes=round(seconds/60, 3),
                     curve=[dict(train_loss=float(v)) for v in training.losses], figure_4=claim)
        outcome = Outcome(training.network, lambda images: training.logits(images).softmax(1), clusterer)
        write_results(run, outcome, self.material, self.place, known)
        if run.attend: self.networks[run.name] = training.network.eval().requires_grad_(False)
        print(f'{run_title(run)} {seconds:.1f} s', flush=True)
    def train(self, runs, until):
        "How many of them are finished"
        return len(train_together([partial(self.make, r) for r in runs], partial(self.keep, runs), self.slots, until))

def grid(args):
    "All grids, for as long as time is left"
    todo,until = Grid(args),time.monotonic() + args.seconds - 20
    known = [todo.place, Place(root/'results')]
    wanted = [r for r in runs_of(args) if not any(p.finished(r) for p in known)]
    finished,networks = 0,0
    for seed in sorted({r.seed for r in wanted}):
        runs = [r for r in wanted if r.seed==seed]
        networks += todo.train(list({r.phase1.name: r.phase1 for r in runs if r.phase1}.values()), until)
        finished += todo.train(runs, until)
        todo.networks,todo.maps = {},{}
    return dict(finished=finished, networks=networks, wanted=len(wanted))

parts = dict(cells=cells, kmeans=kmeans, epochs=epochs, grid=grid)

def main():
    parser = argparse.ArgumentParser('python -m benchmarks.gpu', description=__doc__.splitlines()[0])
    parser.add_argument('part', choices=parts)
    parser.add_argument('--data', type=Path, help='FER2013 in any form that load_faces reads')
    parser.add_argument('--landmarks', type=Path, help='npz with names and landmarks of the faces; they are looked for if not given')
    parser.add_argument('--out', type=Path, default=Path('gpu'), help='folder for the results')
    parser.add_argument('--seconds', type=float, default=300, help='time for the grid')
    parser.add_argument('--slots', type=int, default=8, help='trainings at a time')
    parser.add_argument('--dry', action='store_true', help='small and few, on any machine')
    args = parser.parse_args()
    if not (cuda or args.dry): sys.exit('there is no GPU that torch can use: --dry shows that the parts run')
    if cuda: torch.backends.cudnn.benchmark = True
    found = parts[args.part](args)
    info = dict(card=torch.cuda.get_device_name() if cuda else 'none', torch=torch.__version__, date=time.strftime('%Y-%m-%d'))
    write_json(args.out/f'{args.part}.json', info | found)
    print(json.dumps(info | found, indent=1))

if __name__=='__main__': main()
