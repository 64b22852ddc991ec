"""Damaged files and tables through the readers: python -m benchmarks.mutate [--files 20000] [--seed 0]

Each file is a whole one with bytes flipped, cut off, or spliced with another's. What may come out is the set, with each image under its own
label, or one sentence; never a traceback, a hang, another's label, or fewer images without a word."""
import argparse
import contextlib
import csv
import io
import json
import os
import random
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from fer_perturb.data import EMOTIONS, USAGES
from fer_perturb.readers import load_faces, save_faces
from fer_perturb.toyfaces import toy_faces

words = 'train', 'valid', 'test'
sentences = ValueError, FileNotFoundError

def png(image, kind='PNG'):
    file = io.BytesIO()
    Image.fromarray(image.numpy()).save(file, kind)
    return file.getvalue()

def zipped(files, compression=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', compression) as z:
        for name,content in files: z.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), content, compression)
    return file.getvalue()

def tarred(files, kind):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=f'w:{kind}') as tar:
        for name,content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()

def table(faces, sep=',', encoding='utf-8'):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=sep, lineterminator='\n')
    writer.writerow(['emotion', 'pixels', 'Usage'])
    for face,u in zip(faces, faces.usage.tolist()):
        writer.writerow([EMOTIONS.index(face.label), ' '.join(map(str, face.image.flatten().tolist())), USAGES[u]])
    return text.getvalue().encode(encoding)

def parquet(faces):
    import pyarrow as pa, pyarrow.parquet as pq
    names = sorted(EMOTIONS)
    columns = dict(image=[{'bytes': png(f.image), 'path': None} for f in faces], label=[names.index(f.label) for f in faces],
                   split=[words[u] for u in faces.usage.tolist()])
    info = {'huggingface': json.dumps({'info': {'features': {'label': {'_type': 'ClassLabel', 'names': names}}}})}
    file = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata(info), file, compression='none', write_page_checksum=True)
    return file.getvalue()

def originals(faces, folder):
    "Whole files of each form: {ending: bytes}"
    files = [(f'{words[u]}/{f.label}/{i}.png', png(f.image)) for i,(f,u) in enumerate(zip(faces, faces.usage.tolist()))]
    jpegs = [(n.replace('.png', '.jpg'), png(f.image, 'JPEG')) for (n,_),f in zip(files, faces)]
    save_faces(faces, folder/'whole.npz')
    return {'.zip': zipped(files), '.jpg.zip': zipped(jpegs, zipfile.ZIP_STORED), '.tar': tarred(files, ''), '.tar.gz': tarred(files, 'gz'), '.tar.xz': tarred(files, 'xz'),
            '.nested.zip': zipped([('a/inner.zip', zipped(files))]), '.csv': table(faces), '.semicolon.csv': table(faces, ';'), '.utf16.csv': table(faces, encoding='utf-16'),
            '.csv.zip': zipped([('fer2013.csv', table(faces))]), '.parquet': parquet(faces), '.npz': (folder/'whole.npz').read_bytes()}

def mutated(content, other, rng):
    "The bytes of a file, damaged in one of several ways, and a word for the way"
    content,n = bytearray(content),len(content)
    def place(): return rng.randrange(n) if rng.random()<.5 else rng.choice((rng.randrange(min(n, 600)), n-1-rng.randrange(min(n, 600))))
    way = rng.choice(('flip', 'flips', 'byte', 'cut', 'hole', 'twice', 'head', 'tail', 'zeros', 'swap', 'append'))
    a,b = sorted((place(), place()))
    if way=='flip': content[a] ^= 1<<rng.randrange(8)
    elif way=='flips':
        for _ in range(rng.randrange(2, 30)): content[place()] ^= 1<<rng.randrange(8)
    elif way=='byte': content[a] = rng.choice((0, 255, 32, 44, 10, 13, 34, rng.randrange(256)))
    elif way=='cut': del content[a:]
    elif way=='hole': del content[a:min(b, a+rng.randrange(1, 2000))]
    elif way=='twice': content[a:a] = content[a:min(b, a+2000)]
    elif way=='head': content[:a] = other[:a]
    elif way=='tail': content[a:] = other[min(a, len(other)-1):]
    elif way=='zeros': content[a:min(b, a+500)] = bytes(len(content[a:min(b, a+500)]))
    elif way=='swap': content[a:a+50],content[b:b+50] = content[b:b+50],content[a:a+50]
    else: content += other[a%len(other):][:2000]
    return bytes(content),way

def thumbs(images): return images.reshape(len(images), -1).astype(np.float32)

def states(content, label):
    "Does a csv file itself give some image this label more often than the whole one: it has no digest, and a digit may become another"
    encoding = next((e for e in ('utf-16', 'utf-8') if content[:2] in (b'\xff\xfe', b'\xfe\xff') or e=='utf-8'))
    lines = content.decode(encoding, 'replace').splitlines()[1:]
    return sum(line[:1]==str(EMOTIONS.index(label)) for line in lines)>4

def judge(path, faces, lossy):
    "What came out: 'whole', 'sentence', 'fewer, said', 'a digit'; or what must not: 'label', 'fewer', 'traceback'"
    said = io.StringIO()
    try:
        with warnings.catch_warnings(record=True) as caught, contextlib.redirect_stdout(said):
            warnings.simplefilter('always')
            data = load_faces(path, cache=False)
    except sentences as e: return ('sentence', '') if str(e).isprintable() and 0<len(str(e))<600 else ('traceback', f'no sentence: {e!r}')
    except Exception: return 'traceback', traceback.format_exc()
    own,found = thumbs(faces.images.numpy()),thumbs(data.images.numpy())
    distance = np.abs(own[None]-found[:,None]).mean(2) if len(found) else np.zeros((0, 1))
    nearest = distance.argmin(1)
    for i,j in enumerate(nearest):
        if distance[i,j]>(12 if lossy else 6): continue # an image that was damaged itself, as a plain tar file cannot tell
        if data[i].label!=faces[int(j)].label and path.suffix=='.csv' and states(path.read_bytes(), data[i].label): return 'a digit',''
        if data[i].label!=faces[int(j)].label: return 'label', f'image {j} is {faces[int(j)].label}, read as {data[i].label}'
    texts = ' '.join(str(w.message) for w in caught)
    if len(data)<len(faces): return ('fewer, said', '') if 'left out' in texts else ('fewer', f'{len(data)} of {len(faces)}: {said.getvalue()} {texts}')
    return 'whole',''

def run(n, seed=0, folder=None, slow=10.):
    "Try n damaged files; counts by form and outcome, and the failures in words"
    rng,folder = random.Random(seed),Path(folder or tempfile.mkdtemp())
    faces = toy_faces(70, seed=1)[:28]
    faces = faces.with_columns(usage=np.repeat([0,0,1,2], 7))
    whole = originals(faces, folder)
    counts,failures = Counter(),[]
    for ending,content in whole.items():
        path = folder/f'whole{ending}'
        path.write_bytes(content)
        if judge(path, faces, '.jpg' in ending)[0]!='whole': raise ValueError(f'{path} is not read as it was written')
    for i in range(n):
        ending = list(whole)[i%len(whole)]
        content,way = mutated(whole[ending], whole[rng.choice(list(whole))], rng)
        path = folder/f'odd{ending}'
        path.write_bytes(content)
        start = time.perf_counter()
        outcome,why = judge(path, faces, '.jpg' in ending)
        if time.perf_counter()-start>slow: outcome,why = 'hang',f'{time.perf_counter()-start:.0f} s'
        counts[ending,outcome] += 1
        if outcome not in ('whole', 'sentence', 'fewer, said', 'a digit'): failures.append((i, ending, way, outcome, why, content))
    return counts,failures

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--files', type=int, default=20_000)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--keep', help='folder for the damaged files that were not handled')
    options = parser.parse_args()
    counts,failures = run(options.files, options.seed)
    for ending in dict.fromkeys(e for e,_ in counts):
        print(f'{ending:14}', ', '.join(f'{outcome} {n:,}' for (e,outcome),n in sorted(counts.items()) if e==ending))
    print(f'{sum(counts.values()):,} files, {len(failures)} failures')
    for i,ending,way,outcome,why,content in failures[:40]: print(f'--- {i} {ending} {way}: {outcome}\n{ascii(why)[-500:]}')
    if options.keep:
        os.makedirs(options.keep, exist_ok=True)
        for i,ending,_,_,_,content in failures: (Path(options.keep)/f'{i}{ending}').write_bytes(content)
    return int(bool(failures))

if __name__=='__main__': raise SystemExit(main())
