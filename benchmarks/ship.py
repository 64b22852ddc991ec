"""The weights that come with the package, and their card, from the finished run of grid `ship`

`fer-perturb run ship --data fer2013.zip` trains it. `python -m benchmarks.ship fer2013.zip maskfer.zip` writes the weights with 16 bits a number, reads them
again, and prints what they are worth on PublicTest. With `--final` it reads PrivateTest, too, and writes the card."""
import argparse
import time
from pathlib import Path

import torch
from scipy.stats import binomtest

from fer_perturb.data import EMOTIONS
from fer_perturb.evaluate import correct, macro_f1, predict_faces
from fer_perturb.learner import face_learner
from fer_perturb.readers import load_faces, write_beside
from fer_perturb.records import Place, read_json
from fer_perturb.runs import find_grid
from fer_perturb.weights import blank_loaders, load_model, save_weights, shipped_weights

from .common import markdown

def write_weights(place):
    "The network of the run as a file of weights"
    run, = find_grid('ship')
    if not place.finished(run): raise SystemExit('the run is not finished: fer-perturb run ship --data fer2013.zip')
    learn = face_learner(blank_loaders(EMOTIONS), run.arch)
    learn.model.load_state_dict(torch.load(place.network(run), map_location='cpu', weights_only=True))
    learn.origin |= dict(recipe=run.settings)
    shipped_weights().parent.mkdir(exist_ok=True)
    return run,save_weights(learn, shipped_weights(), half=True)

def share(right):
    "Per cent, with Wilson's 95 % interval"
    low,high = binomtest(int(right.sum()), len(right)).proportion_ci(method='wilson')
    return f'{100*right.float().mean():.1f} ({100*low:.1f} to {100*high:.1f})'

def row(learn, faces):
    "Images, accuracy, macro F1, accuracy of each class"
    found = predict_faces(learn, faces)
    right = correct(found, faces.labels, faces.vocab)
    return (f'{len(faces):,}', share(right), f'{macro_f1(found, faces.labels, faces.vocab):.3f}',
            *(share(right[faces.labels==c]) for c in range(len(faces.vocab))))

def main(
    arguments:list=None, # command line; that of the process if None
):
    parser = argparse.ArgumentParser('python -m benchmarks.ship', description=__doc__)
    parser.add_argument('clean', type=Path, help='FER2013 in any form')
    parser.add_argument('masked', type=Path, help='the same faces with masks on')
    parser.add_argument('--results', type=Path, default=Path('results'))
    parser.add_argument('--final', action='store_true', help='read PrivateTest, and write the card')
    args = parser.parse_args(arguments)
    place = Place(args.results)
    run,path = write_weights(place)
    learn = load_model(path)
    sets = {name: load_faces(source).in_order(EMOTIONS) for name,source in (('clean', args.clean), ('masked', args.masked))}
    parts = ['PublicTest'] + ['PrivateTest']*args.final
    rows = [(f'{part}, {name}', *row(learn, faces.part(part))) for part in parts for name,faces in sets.items()]
    names,*columns = zip(*rows)
    table = markdown(('', *names), [(what, *column) for what,column in zip(('images', 'accuracy', 'macro F1', *EMOTIONS), columns)])
    print(table)
    if not args.final: return
    record = read_json(place.record(run))
    text = (Path(__file__).parent/'card.md').read_text()
    card = text.format(table=table, date=time.strftime('%Y-%m-%d'), megabytes=path.stat().st_size/1e6, epochs=run.epochs, run=run.name,
                       minutes=record['minutes'], hardware=record['hardware'],
                       weights=sum(p.numel() for p in learn.model.parameters())/1e6)
    with write_beside(path.with_name('README.md')) as part: part.write_text(card)

if __name__=='__main__': main()
