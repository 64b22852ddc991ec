"""Damaged files that are led by coverage: python -m benchmarks.guided FORM [--minutes 10] [--seed 0], with pip install atheris

A fuzzer (atheris, on libFuzzer) keeps each changed file that reaches a new branch of the readers, and changes it further. What may come out is a
set that holds together, or one sentence. The first file for which it is neither is written beside what was found and ends the run."""
import argparse
import contextlib
import csv
import io
import random
import sys
import tempfile
import warnings
from pathlib import Path

FORMS = '.csv', '.zip', '.tar', '.tar.gz', '.csv.zip', '.parquet', '.npz', '.png', '.jpg', '.votes.csv'

def small(n=6, size=8):
    "Few and small images: a fuzzer that has to change 2,304 numbers finds nothing else"
    import numpy as np
    from PIL import Image

    from fer_perturb.data import FERData
    from fer_perturb.toyfaces import toy_faces
    faces = toy_faces(70, seed=1)[:n]
    images = [np.asarray(Image.fromarray(f.image.numpy()).resize((size, size))) for f in faces]
    return FERData(np.stack(images), faces.labels, vocab=faces.vocab, usage=np.arange(n)%3)

def originals(form, folder):
    "Whole files of a form, to begin with"
    from benchmarks import fuzz, mutate
    faces = small()
    if form=='.votes.csv':
        rows,text = fuzz.vote_rows(random.Random(0), faces),io.StringIO()
        csv.writer(text, lineterminator='\n').writerows(rows)
        return [text.getvalue().encode()]
    if form in ('.png', '.jpg'): return [mutate.png(faces[0].image, kind) for kind in ('PNG', 'JPEG', 'BMP', 'GIF', 'TIFF', 'WEBP')]
    whole = mutate.originals(faces, folder)
    return [content for ending,content in whole.items() if ending.endswith(form)]

def flaw(data):
    "What does not hold together in a set that was read; empty if nothing"
    n = len(data)
    if len(data.images)!=n or data.images.dtype.is_floating_point: return f'{n} rows, images {tuple(data.images.shape)} {data.images.dtype}'
    if n and not 0<=int(data.labels.min())<=int(data.labels.max())<len(data.vocab): return 'a label out of range'
    if len(set(data.vocab))!=len(data.vocab): return 'a class twice'
    for name in data.columns:
        if len(data.columns[name])!=n: return f'column {name} has another length'
    return ''

def trial(form, place):
    "A function that reads a file of these bytes, and fails if what comes out is neither a sound set nor a sentence"
    from fer_perturb.labels import ferplus
    from fer_perturb.readers import load_faces
    image,faces = form in ('.png', '.jpg'),small()
    path = place/(f'train/happy/face{form}' if image else f'odd{form}')
    path.parent.mkdir(parents=True, exist_ok=True)
    def one(content):
        path.write_bytes(content)
        with warnings.catch_warnings(), contextlib.redirect_stdout(None):
            warnings.simplefilter('ignore')
            try: data = ferplus(faces, path) if form=='.votes.csv' else load_faces(place if image else path, cache=False)
            except (ValueError, FileNotFoundError) as e:
                if not 0<len(str(e))<600 or not str(e).isprintable(): raise AssertionError(f'no sentence: {e!r}') from e
                return
        if not len(data) and form!='.votes.csv': raise AssertionError('a set without images')
        if why := flaw(data): raise AssertionError(why)
    return one

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('form', choices=FORMS)
    parser.add_argument('--minutes', type=float, default=10.)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--folder', type=Path, help='keeps the files that reached something new (default: a temporary folder)')
    options = parser.parse_args()
    try: import atheris
    except ImportError: parser.error('this needs the fuzzer atheris: pip install atheris')
    folder = (options.folder or Path(tempfile.mkdtemp(prefix='guided'))).resolve()
    corpus = folder/'corpus'
    corpus.mkdir(parents=True, exist_ok=True)
    with atheris.instrument_imports(include=['fer_perturb', 'zipfile', 'tarfile', 'PIL.ImageFile', 'PIL.PngImagePlugin', 'PIL.JpegImagePlugin']):
        one = trial(options.form, folder/'place')
    for i,content in enumerate(originals(options.form, folder)):
        one(content)
        (corpus/f'whole{i}').write_bytes(content)
    atheris.Setup([sys.argv[0], str(corpus), f'-max_total_time={round(60*options.minutes)}', '-timeout=20', '-max_len=20000', '-rss_limit_mb=6000',
                   f'-seed={options.seed+1}', f'-artifact_prefix={folder}/', '-print_final_stats=1', '-verbosity=1'], one)
    atheris.Fuzz()

if __name__=='__main__': main()
