"""FER2013 in the six forms that people have: is it the same, and how long does it take to read?

`python -m benchmarks.sources fer2013.zip fer2013.tar.xz` writes the other four forms of the zip file's faces into a temporary folder, and reads each in a
process of its own, first with an empty cache, then from the cache. Images, labels and parts are compared face by face."""
import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import pandas as pd
from PIL import Image

from fer_perturb.data import EMOTIONS, USAGES
from fer_perturb.readers import load_faces

from .common import markdown

def write_tables(faces, folder):
    "fer2013.csv, and the competition's icml_face_data.csv, whose header has blanks"
    pixels = [' '.join(map(str, image)) for image in faces.images.flatten(1).tolist()]
    usage = [USAGES[u] for u in faces.usage.tolist()]
    table = pd.DataFrame(dict(emotion=faces.labels.tolist(), pixels=pixels, Usage=usage))
    table.to_csv(folder/'fer2013.csv', index=False)
    table[['emotion', 'Usage', 'pixels']].rename(columns=dict(Usage=' Usage', pixels=' pixels')).to_csv(folder/'icml_face_data.csv', index=False)
    return folder/'fer2013.csv',folder/'icml_face_data.csv'

def write_parquet(faces, folder):
    "Shards of a Hugging Face data set, whose schema names the classes"
    import pyarrow as pa
    import pyarrow.parquet as pq
    folder.mkdir()
    images,labels = faces.images,faces.labels # each access gathers them anew
    features = dict(image=dict(_type='Image'), label=dict(names=list(EMOTIONS), _type='ClassLabel'))
    for usage,name in zip(range(3), ('train', 'validation', 'test')):
        rows = [i for i,u in enumerate(faces.usage.tolist()) if u==usage]
        def png(i):
            file = io.BytesIO()
            Image.fromarray(images[i].numpy()).save(file, 'PNG', compress_level=1)
            return dict(bytes=file.getvalue(), path=None)
        table = pa.table(dict(image=[png(i) for i in rows], label=[int(labels[i]) for i in rows]))
        table = table.replace_schema_metadata({'huggingface': json.dumps(dict(info=dict(features=features)))})
        pq.write_table(table, folder/f'{name}-00000-of-00001.parquet')
    return folder

read = """
import hashlib, json, sys, time, warnings
warnings.simplefilter('ignore')
from fer_perturb.data import EMOTIONS
from fer_perturb.readers import load_faces
start = time.perf_counter()
faces = load_faces(sys.argv[1])
took = time.perf_counter()-start
faces = faces.in_order(EMOTIONS)
rows = sorted(hashlib.sha256(i.numpy().tobytes()).hexdigest()+f' {l} {u}' for i,l,u in zip(faces.images, faces.labels.tolist(), faces.usage.tolist()))
print(json.dumps([took, len(rows), hashlib.sha256(''.join(rows).encode()).hexdigest()[:16]]))
"""

def timed(source, cache):
    "Seconds, faces, and a digest of the set of (image, class, part)"
    out = subprocess.run([sys.executable, '-c', read, source], env=os.environ | dict(FER_PERTURB_CACHE=str(cache)), capture_output=True, text=True, check=True)
    return json.loads(out.stdout.splitlines()[-1])

def main(
    arguments:list=None, # command line; that of the process if None
):
    parser = argparse.ArgumentParser('python -m benchmarks.sources', description=__doc__)
    parser.add_argument('zip', type=Path, help="FER2013 as Kaggle's zip file")
    parser.add_argument('tar', type=Path, nargs='?', help='the same as a tar file')
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        zipfile.ZipFile(args.zip).extractall(tmp/'folder')
        os.environ['FER_PERTURB_CACHE'] = str(tmp/'first')
        faces = load_faces(args.zip).in_order(EMOTIONS)
        sources = {'zip file': args.zip} | ({'tar file': args.tar} if args.tar else {}) | {'folder': tmp/'folder'}
        sources |= dict(zip(('fer2013.csv', 'icml_face_data.csv'), write_tables(faces, tmp))) | {'parquet, 3 shards': write_parquet(faces, tmp/'parquet')}
        rows,digests = [],set()
        for name,source in sources.items():
            (cold,n,digest),(warm,_,again) = (timed(source, tmp/'cache'/name) for _ in range(2))
            digests |= {digest, again}
            rows.append((name, f'{n:,}', f'{cold:.1f}', f'{warm:.2f}', digest))
    print(markdown(('form', 'faces', 'seconds, cold', 'warm', 'digest'), rows))
    print('all equal' if len(digests)==1 else 'NOT EQUAL')
    return int(len(digests)>1)

if __name__=='__main__': sys.exit(main())
