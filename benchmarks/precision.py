"""Accuracy after a short training in float32 and in bfloat16, with several seeds: `python -m benchmarks.precision fer2013.zip`"""
import argparse
import time
from pathlib import Path

from fastai.callback.channelslast import ChannelsLast
from fastai.vision.all import set_seed

from fer_perturb.learner import BFloat16
from fer_perturb.readers import load_faces

from .common import markdown, spread
from .training import quick_learner, with_precision

precisions = {'float32': (ChannelsLast,), 'bfloat16': (ChannelsLast, BFloat16)}

def train(
    faces, # FERData
    precision:str, # key of `precisions`
    epochs:int,
    seed:int, # of everything random
)->tuple: # accuracy on PublicTest in %, loss there, minutes of a processor
    "One training by the quick recipe"
    set_seed(seed)
    learn = with_precision(quick_learner(faces, device='cpu'), *precisions[precision])
    start = time.process_time()
    with learn.no_bar(), learn.no_logging(): learn.fit_quick(epochs)
    loss,accuracy = learn.recorder.values[-1][1:3]
    return 100*accuracy,loss,(time.process_time()-start)/60

def main():
    parser = argparse.ArgumentParser('python -m benchmarks.precision', description=__doc__)
    parser.add_argument('data', type=Path, help='FER2013 in any form that load_faces reads')
    parser.add_argument('--epochs', type=int, default=4)
    parser.add_argument('--seeds', type=int, nargs='+', default=[42, 43, 44])
    args = parser.parse_args()
    faces = load_faces(args.data)
    rows = [(seed, precision, *train(faces, precision, args.epochs, seed)) for seed in args.seeds for precision in precisions]
    rows += [('median', precision, *map(spread, zip(*(row[2:] for row in rows if row[1]==precision)))) for precision in precisions]
    print(markdown(('seed', 'precision', 'PublicTest, %', 'loss', 'minutes of a processor'), rows))

if __name__=='__main__': main()
