"""Odd inputs, by seed: python -m benchmarks.fuzz [--inputs 1000000] [--minutes 10] [--seed 0] [--only readers,kmeans,clusters,votes,cli]

Damaged files (see mutate.py), odd tensors, odd vote tables, odd words on the command line. What may come out is the right answer or one sentence;
never a traceback, a hang, a number that is none, or a wrong answer without a word. Input number i of a seed is the same wherever it runs."""
import argparse
import contextlib
import csv
import io
import json
import os
import random
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from inspect import Parameter, signature
from pathlib import Path

import numpy as np
import torch
from pandas._libs.parsers import STR_NA_VALUES
from PIL import Image

from benchmarks import mutate
from fer_perturb.data import EMOTIONS, USAGES
from fer_perturb.kmeans import cluster_maps, eq1_features, kmeans, shared_centroids
from fer_perturb.labels import VOTES, ferplus
from fer_perturb.perturb import Clusterer, cluster_views, drop_cluster, keep_cluster, stack_clusters
from fer_perturb.toyfaces import toy_faces
from fer_perturb.words import printable

class Hang(BaseException): pass

@contextlib.contextmanager
def at_most(seconds):
    "An input that takes longer hangs"
    def ring(*args): raise Hang
    if not hasattr(signal, 'SIGALRM'): yield; return
    old = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try: yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)

def is_sentence(text): return 0<len(text)<900 and text.replace('\n', ' ').replace('\t', ' ').isprintable()

def outcome(f, check):
    "What came out: 'right', 'sentence', or what must not: 'traceback', 'hang', 'wrong'"
    try:
        with at_most(20), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            result = f()
            wrong = check(result)
    except (ValueError, FileNotFoundError, TypeError) as e:
        deepest = traceback.extract_tb(e.__traceback__)[-1]
        ours = 'fer_perturb' in deepest.filename or 'argparse' in deepest.filename
        return ('sentence', '') if ours and is_sentence(str(e)) else ('traceback', f'{type(e).__name__}: {str(e)[:200]} at {deepest.filename}:{deepest.lineno}')
    except Hang: return 'hang',''
    except Exception as e: return 'traceback',f'{type(e).__name__}: {str(e)[:200]} ' + ' '.join(traceback.format_exc().splitlines()[-4:-1])
    return ('wrong', wrong) if wrong else ('right', '')

# k-means

def odd_numbers(rng, *shape):
    "A tensor with ties, repetitions, huge and tiny numbers, or numbers that are none"
    g = torch.Generator().manual_seed(rng.randrange(2**31))
    x = torch.rand(shape, generator=g)
    kind = rng.choice(('plain', 'plain', 'plain', 'ties', 'constant', 'huge', 'tiny', 'far', 'nan', 'inf', 'half', 'double', 'int', 'bytes', 'negative'))
    if kind=='ties': x = (x*3).round()
    if kind=='constant': x = torch.full(shape, rng.choice((0., 1., -2.5)))
    if kind in ('huge', 'tiny', 'far'): x = dict(huge=x*10.**rng.randrange(3, 39), tiny=x*10.**-rng.randrange(3, 45), far=x+10.**rng.randrange(1, 5))[kind]
    if kind in ('nan', 'inf') and x.numel(): x.view(-1)[rng.randrange(x.numel())] = float(kind)*rng.choice((1, -1))
    if kind=='negative': x = x-.5
    return dict(half=x.half(), double=x.double(), int=(x*9).long(), bytes=(x*255).byte()).get(kind, x)

def size(rng, odd=.06): return 0 if rng.random()<odd else rng.choice((1, 1, 2, 3, 5, 8, 13, 40))

def shape_of(rng, *names):
    "Sizes, mostly as wanted, sometimes one too many or too few"
    sizes = list(names)
    if rng.random()<.05: sizes.insert(rng.randrange(len(sizes)+1), size(rng))
    elif rng.random()<.05: sizes.pop()
    elif rng.random()<.05: sizes[rng.randrange(len(sizes))] += rng.choice((1, -1)) if min(sizes) else 1
    return sizes

def fuzz_kmeans(rng):
    b,n,d,k = size(rng),size(rng),rng.choice((1, 2, 3, 3, 3, 7)),rng.choice((-1, 0, 1, 2, 3, 3, 3, 5, 41))
    points = odd_numbers(rng, *shape_of(rng, b, n, d))
    settings = dict(n_iter=rng.choice((0, 1, 5, 30)), chunk=rng.choice((None, None, 1, 2, 0, -3)), compiled=False)
    if rng.random()<.5: settings['n_clusters'] = k
    else: settings['centroids'] = odd_numbers(rng, *shape_of(rng, *([b] if rng.random()<.5 else []), max(k, 0), d))
    if rng.random()<.3: settings['weights'] = odd_numbers(rng, *shape_of(rng, b, n))
    def check(found):
        "Labels are those of the nearest centroids, in float64"
        k = found.centroids.shape[-2]
        if found.labels.numel() and not 0<=int(found.labels.min())<=int(found.labels.max())<k: return 'a label out of range'
        if not found.centroids.isfinite().all() or not found.inertia.isfinite().all(): return 'a centroid or inertia that is no number'
        x,c = points.double(),found.centroids.double()
        distances = (x[:,:,None]-c[:,None]).square().sum(-1)
        own = distances.gather(2, found.labels[...,None])[...,0]
        spread = (x-x.mean(1, keepdim=True)).square().sum(-1).mean(1)[:,None] + (c-x.mean(1, keepdim=True)).square().sum(-1).amax(1)[:,None]
        if (own>distances.amin(2)+1e-3*spread+1e-5*x.square().sum(-1)+1e-30).any(): return 'a label is not that of the nearest centroid'
    return outcome(lambda: kmeans(points, **settings), check),f'points {tuple(points.shape)} {points.dtype}, {dict((a, tuple(v.shape) if torch.is_tensor(v) else v) for a,v in settings.items())}'

def fuzz_clusters(rng):
    "From images and saliency to hidden regions"
    b,c,h,w = size(rng),rng.choice((1, 1, 3)),rng.choice((1, 2, 6, 9)),rng.choice((1, 3, 6, 9))
    images,saliency = odd_numbers(rng, *shape_of(rng, b, c, h, w)),odd_numbers(rng, *shape_of(rng, b, h, w))
    def sometimes(usual, *odd): return rng.choice(odd) if rng.random()<.04 else rng.choice(usual)
    settings = dict(n_clusters=sometimes((1, 2, 3), -1, 0, 20, 300, 2.5, True), keep=sometimes((.3, .6, 1), 0, .01, 1.5, float('nan'), -1),
                    feature=sometimes(('intensity', 'attention'), 'depth'), refine=sometimes((0, 5), -1, 1.5), one_map=rng.random()<.2, sample=sometimes((512, 3), 1, 0))
    form,p,fill = rng.choice((drop_cluster, keep_cluster, cluster_views, stack_clusters)),sometimes((0., .5, 1.), -1, 2, float('nan')),sometimes((.5, 0.), float('nan'), 'gray')
    def run():
        clusterer = Clusterer(None, **settings).fit(images, saliency)
        maps = clusterer(images, saliency)
        extra = dict(p=p) if form in (drop_cluster, keep_cluster) else {}
        return clusterer,maps,form(images, maps, settings['n_clusters'], fill=fill, **extra)
    def check(found):
        clusterer,maps,changed = found
        n,k = max(1, round(settings['keep']*saliency[0].numel())) if len(saliency) else 0,settings['n_clusters']
        if not clusterer.centroids.isfinite().all(): return 'centroids that are no numbers'
        if maps.dtype!=torch.uint8 or maps.shape!=saliency.shape or maps.numel() and int(maps.max())>k: return 'maps of another kind'
        if not settings['one_map'] and maps.numel() and not ((maps>0).flatten(1).sum(1)==n).all(): return 'another number of pixels'
        if images.is_floating_point() and images.isfinite().all() and not changed.isfinite().all(): return 'pixels that are no numbers'
        if form in (drop_cluster, keep_cluster) and p==0 and not changed.double().isclose(images.double(), rtol=0, atol=0, equal_nan=True).all(): return 'changed, although p is 0'
    return outcome(run, check),f'images {tuple(images.shape)} {images.dtype}, saliency {tuple(saliency.shape)} {saliency.dtype}, {settings}, {form.__name__}, p {p}, fill {fill}'

# vote tables

def vote_rows(rng, faces):
    rows = [['Usage', 'Image name', *VOTES]]
    for i,u in enumerate(faces.usage.tolist()):
        votes = [0]*10
        for _ in range(10): votes[rng.choice((0, 1, 2, 3, rng.randrange(10)))] += 1
        rows.append([USAGES[u], '' if rng.random()<.1 else f'fer{i:07}.png', *map(str, votes)])
    return rows

def odd_rows(rng, rows):
    "A table with something wrong in it"
    rows,way = [list(r) for r in rows],rng.randrange(9)
    i,j = rng.randrange(1, len(rows)),rng.randrange(len(rows[0]))
    if way==0: rows[i][j] = rng.choice(('', '-1', 'nan', 'inf', '1e400', '3.5', 'x', '999', ' 3', '0x4', '"', '٣', 'True', '1_0', '−2', '1,5'))
    elif way==1: del rows[i]
    elif way==2: rows.insert(i, list(rows[rng.randrange(1, len(rows))]))
    elif way==3: del rows[i][j]
    elif way==4: rows[i].insert(j, '0')
    elif way==5: rows[0][j] = rng.choice(('', rows[0][j].upper(), ' '+rows[0][j], rows[0][(j+1)%12], 'x'))
    elif way==6:
        a,b = rng.randrange(12),rng.randrange(12)
        for row in rows: row[a],row[b] = row[b],row[a]
    elif way==7: rows[i],rows[1] = rows[1],rows[i]
    return rows

def expected_labels(text, faces):
    "What an independent reader makes of a table: (rows that are kept, their emotions); None if it has a flaw"
    rows = list(csv.reader(io.StringIO(text, newline=None), skipinitialspace=True))
    if not rows: return None
    rows,head = [r for r in rows[1:] if r],[name.strip() for name in rows[0]]
    if sorted(head)!=sorted(['Usage', 'Image name', *VOTES]) or len(rows)!=len(faces) or any(len(r)!=12 for r in rows): return None
    kept,labels = [],[]
    for i,row in enumerate(rows):
        cells = dict(zip(head, row))
        if cells['Usage'].strip()!=USAGES[int(faces.usage[i])]: return None
        try: votes = [float(cells[v]) for v in VOTES]
        except ValueError: return None
        named = cells['Image name'].strip() not in STR_NA_VALUES
        if not all(0<=v<float('inf') for v in votes) or named and not sum(votes): return None
        votes = [0. if v<=1 else v for v in votes]
        top = max(range(10), key=votes.__getitem__)
        if named and top<8 and votes[top]>sum(votes)/2:
            kept.append(i)
            labels.append({'happiness': 'happy', 'sadness': 'sad', 'anger': 'angry'}.get(VOTES[top], VOTES[top]))
    return kept,labels

def fuzz_votes(rng):
    faces,path = shared('faces'),shared('folder')/'votes.csv'
    file = io.StringIO()
    csv.writer(file, lineterminator='\n').writerows(odd_rows(rng, vote_rows(rng, faces)))
    content = file.getvalue().encode()
    if rng.random()<.3: content,_ = mutate.mutated(content, content[::-1], rng)
    path.write_bytes(content)
    def run():
        with contextlib.redirect_stdout(None): return ferplus(faces, path)
    def check(found):
        text = content.decode('utf-8', 'replace')
        wanted = expected_labels(text, faces)
        if wanted is None: return 'a table with a flaw is read without a word'
        kept,labels = wanted
        if [f.label for f in found]!=labels or not torch.equal(found.images, faces.images[kept]): return 'other labels'
    return outcome(run, check),ascii(content[:60].decode('utf-8', 'replace'))

# the command line

def answers(text):
    "What `--json` printed, if that is what it is"
    try: found = json.loads(text)
    except ValueError: return []
    return [a for a in found if isinstance(a, dict)] if isinstance(found, list) else []

def fuzz_cli(rng):
    from fer_perturb import cli
    name = rng.choice(list(cli.COMMANDS))
    words = [name]
    places = list(shared('places'))
    def value(p):
        pool = places if rng.random()<.7 else ['', '-', '--', 'x', '☃', '0', '1', '-1', '3', '1e9', 'nan', '9'*30, '.', '..', '~', 'a\nb', 'cpu', 'cuda:99', 'meta', 'toy', '\x7f', 'out', 'new.csv', 'new.png', 'new.onnx', 'new.safetensors', 'surgical', 'hand', 'landmarks']
        return rng.choice(pool)
    for p in signature(cli.COMMANDS[name]).parameters.values():
        needed = p.default is Parameter.empty
        if needed and rng.random()<.93: words += [value(p) for _ in range(rng.choice((1, 1, 2)) if p.kind is p.VAR_POSITIONAL else 1)]
        elif not needed and rng.random()<.25: words += [f'--{p.name}'] + ([] if p.annotation is bool else [value(p)])
    if rng.random()<.2 and words: words[rng.randrange(len(words))] = rng.choice(('--help', '--bogus', '', value(None), '--size', '--json', '--quiet'))
    if rng.random()<.1: rng.shuffle(words)
    out,err = io.StringIO(),io.StringIO()
    def run():
        with contextlib.chdir(shared('folder')) if hasattr(contextlib, 'chdir') else contextlib.nullcontext(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try: return cli.main(words)
            except SystemExit as e: return e.code or 0
    def check(status):
        if any(c in out.getvalue()+err.getvalue() for c in '\x7f\x1b'): return 'a control character'
        said = err.getvalue() or printable(''.join(f'fer-perturb: {a["error"]}' for a in answers(out.getvalue()) if 'error' in a))
        if status not in (0, 1, 2): return f'status {status}'
        if status==2 and not ('fer-perturb' in said and is_sentence(said[-800:])): return f'status 2 and no sentence: {said[-300:]!r}'
        if 'Traceback' in said: return said[-300:]
        if status==2 and any(mark in said for mark in ("object has no attribute", "unsupported operand", "expected str, bytes", "NoneType")): return said[-300:]
    return outcome(run, check),ascii(words)

# all together

_shared = {}

def shared(name):
    "Things that are made once"
    if not _shared: _shared.update(prepared())
    return _shared[name]

def prepared():
    folder = Path(tempfile.mkdtemp(prefix='fuzz'))
    faces = toy_faces(140, seed=1)[:30]
    faces = faces.with_columns(usage=np.repeat([0, 1, 2], 10))
    (folder/'faces.csv').write_bytes(mutate.table(faces))
    (folder/'empty').write_bytes(b'')
    (folder/'text.txt').write_text('no faces here')
    (folder/'bad.csv').write_text('emotion,pixels,Usage\n0,1 2 3,Training\n')
    (folder/'bad.safetensors').write_bytes(b'\x08\0\0\0\0\0\0\0{"a": 1}')
    (folder/'bad.pkl').write_bytes(b'cos\nsystem\n.')
    (folder/'bad.npz').write_bytes(b'PK\x03\x04')
    (folder/'größe 1').mkdir()
    Image.fromarray(faces[0].image.numpy()).resize((120, 120)).save(folder/'größe 1'/'face.png')
    np.savez(folder/'some.npz', a=np.arange(3))
    os.environ['FER_PERTURB_CACHE'] = str(folder/'cache')
    from fer_perturb import demo, experiments, explore, training
    from fer_perturb.learner import face_learner
    from fer_perturb.loaders import face_block
    from fer_perturb.weights import save_model
    save_model(face_learner(face_block().dataloaders(faces, bs=4, device='cpu'), 'test_resnet'), folder/'model.safetensors')
    def stub(*args, **kwargs): raise ValueError('this would take minutes, so the fuzzer stops here')
    training.train_model = demo.demo = explore.serve = experiments.run_grid = stub
    places = sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file() or p.is_dir()) + ['missing', 'missing/a.csv', str(folder)]
    return dict(folder=folder, faces=faces, places=places)

def fuzz_readers(rng):
    if 'originals' not in _shared:
        shared('folder')
        faces = toy_faces(70, seed=1)[:28]
        faces = faces.with_columns(usage=np.repeat([0, 0, 1, 2], 7))
        _shared.update(read_faces=faces, originals=mutate.originals(faces, _shared['folder']))
    whole = _shared['originals']
    ending = rng.choice(list(whole))
    content,way = mutate.mutated(whole[ending], whole[rng.choice(list(whole))], rng)
    path = _shared['folder']/f'odd{ending}'
    path.write_bytes(content)
    try:
        with at_most(20): found,why = mutate.judge(path, _shared['read_faces'], '.jpg' in ending)
    except Hang: found,why = 'hang',''
    names = dict(whole='right', sentence='sentence', label='wrong', fewer='wrong', traceback='traceback', hang='hang')
    return (names.get(found, 'right'), why),f'{ending} {way}'

TARGETS = dict(readers=fuzz_readers, kmeans=fuzz_kmeans, clusters=fuzz_clusters, votes=fuzz_votes, cli=fuzz_cli)

def run(inputs, seed=0, only=tuple(TARGETS), minutes=10.):
    "Counts by target and outcome, and the failures in words"
    counts,failures,end = Counter(),[],time.monotonic()+60*minutes
    for i in range(inputs):
        if time.monotonic()>end: break
        name = only[i%len(only)]
        torch.manual_seed(i)
        (found,why),what = TARGETS[name](random.Random(f'{seed} {i}'))
        counts[name,found] += 1
        if found not in ('right', 'sentence'): failures.append((i, name, found, why, what))
    return counts,failures

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--inputs', type=int, default=1_000_000)
    parser.add_argument('--minutes', type=float, default=10.)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--only', default=','.join(TARGETS))
    options = parser.parse_args()
    only = tuple(options.only.split(','))
    counts,failures = run(options.inputs, options.seed, only, options.minutes)
    for name in dict.fromkeys(only): print(f'{name:9}', ', '.join(f'{found} {n:,}' for (target,found),n in sorted(counts.items()) if target==name))
    print(f'{sum(counts.values()):,} inputs, {len(failures)} failures')
    kinds = {}
    for failure in failures: kinds.setdefault((failure[1], failure[2], failure[3][-90:]), []).append(failure)
    for found in list(kinds.values())[:40]: print(f'--- {len(found)} times, input {found[0][0]} {found[0][1]}: {found[0][2]} {found[0][3]}\n    {found[0][4]}')
    return int(bool(failures))

if __name__=='__main__': raise SystemExit(main())
