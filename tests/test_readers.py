"Every form in which faces come in, the cache, and what is said about files that are wrong"
import csv
import io
import json
import shutil
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fer_perturb.data import EMOTIONS, USAGES
from fer_perturb.readers import (cache_folder, download_fer2013, from_frame, from_parquet, known_split, load_faces, save_faces, write_beside)
from fer_perturb.writers import write_kaggle


def png(image):
    file = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(file, 'PNG')
    return file.getvalue()

def kaggle_files(faces):
    for face,usage in zip(faces, faces.usage):
        yield f'{"train" if usage==0 else "test"}/{face.label}/{USAGES[usage]}_{face.name}.png', png(face.image.numpy())

def write_zip(path, files):
    with zipfile.ZipFile(path, 'w') as z:
        for name,content in files: z.writestr(name, content)
    return path

def write_folder(path, files):
    for name,content in files:
        (path/name).parent.mkdir(parents=True, exist_ok=True)
        (path/name).write_bytes(content)
    return path

def csv_row(face, usage): return {'emotion': EMOTIONS.index(face.label), 'pixels': ' '.join(map(str, face.image.flatten().tolist())), 'Usage': USAGES[usage]}

def write_csv(path, rows, header=('emotion', 'pixels', 'Usage'), blank=''):
    with open(path, 'w', newline='') as f:
        writer = csv.writer(f)
        writer.writerow([h if h=='emotion' else blank+h for h in header])
        writer.writerows([row[h] for h in header] for row in rows)
    return path

def same_faces(a, b):
    "The same images with the same labels and usage, in any order"
    key = lambda data: sorted((i.numpy().tobytes(), l, u) for i,l,u in zip(data.images, data.labels.tolist(), data.usage.tolist()))
    return key(a)==key(b)

def test_every_form_gives_the_same_faces(faces, tmp_path):
    rows = [csv_row(f, u) for f,u in zip(faces, faces.usage)]
    for path in (write_zip(tmp_path/'fer.zip', kaggle_files(faces)), write_folder(tmp_path/'fer', kaggle_files(faces)),
                 write_csv(tmp_path/'fer2013.csv', rows), write_csv(tmp_path/'icml.csv', rows, ('emotion', 'Usage', 'pixels'), blank=' ')):
        data = load_faces(path)
        assert same_faces(data, faces), path.name
        assert data.vocab==EMOTIONS

def test_labels_follow_the_csv_order_not_the_folders(faces, tmp_path):
    data = load_faces(write_zip(tmp_path/'fer.zip', kaggle_files(faces)))
    for face in data: assert face.name.split('/')[1]==face.label
    assert {EMOTIONS.index(c) for c in ('sad', 'surprise', 'neutral')}=={4, 5, 6}

def test_a_users_own_classes_are_split_and_said_so(faces, tmp_path):
    files = [(f'{"dog" if i%2 else "cat"}/{i}.png', png(f.image.numpy())) for i,f in enumerate(faces[:100])]
    with pytest.warns(UserWarning, match='a tenth of each class'): data = load_faces(write_folder(tmp_path/'pets', files))
    assert data.vocab==('cat', 'dog')
    assert [len(data.part(u)) for u in USAGES]==[80, 10, 10]

def test_size_and_colour_are_converted_and_said_so(faces, tmp_path):
    big = np.repeat(np.repeat(np.stack([f.image.numpy() for f in faces[:40]])[..., None], 3, -1), 2, 1)
    files = [(f'{"ab"[i%2]}/{i}.png', png(image)) for i,image in enumerate(big)]
    with pytest.warns(UserWarning, match='colour mode RGB to gray'), pytest.warns(UserWarning, match='cropped at the centre'): data = load_faces(write_folder(tmp_path/'big', files))
    assert data.images.shape==(40, 48, 48)

def test_cache_is_used_and_renewed(faces, tmp_path, monkeypatch):
    path = write_zip(tmp_path/'fer.zip', kaggle_files(faces))
    first = load_faces(path)
    monkeypatch.setattr('fer_perturb.readers.from_zip', None)
    assert same_faces(load_faces(path), first)
    monkeypatch.undo()
    monkeypatch.setenv('FER_PERTURB_CACHE', str(tmp_path/'cache'))
    write_zip(path, list(kaggle_files(faces))[:300])
    assert len(load_faces(path))==300

def test_a_broken_cache_is_read_anew(faces, tmp_path):
    path = write_zip(tmp_path/'fer.zip', kaggle_files(faces))
    load_faces(path)
    kept, = cache_folder().iterdir()
    kept.write_bytes(kept.read_bytes()[:1000])
    assert same_faces(load_faces(path), faces)

def test_saving_leaves_nothing_half_written(faces, tmp_path, monkeypatch):
    target = tmp_path/'faces.npz'
    target.write_text('precious')
    def stop(*args, **kwargs): raise KeyboardInterrupt
    monkeypatch.setattr(np, 'savez', stop)
    with pytest.raises(KeyboardInterrupt): save_faces(faces, target)
    assert target.read_text()=='precious'
    assert list(tmp_path.glob('*.part'))==[]

def test_what_is_written_beside_appears_whole_or_not_at_all(tmp_path):
    for make in (lambda part: part.write_text('new'), lambda part: (part/'a').mkdir(parents=True)):
        with pytest.raises(KeyboardInterrupt), write_beside(tmp_path/'deep'/'target') as part:
            make(part)
            assert part.parent==tmp_path/'deep'
            raise KeyboardInterrupt
        assert list((tmp_path/'deep').iterdir())==[]
        with write_beside(tmp_path/'deep'/'target') as part: make(part)
        target, = (tmp_path/'deep').iterdir()
        assert target.name=='target' and (target.is_dir() or target.read_text()=='new')
        shutil.rmtree(target) if target.is_dir() else target.unlink()

def test_saved_faces_come_back(faces, tmp_path):
    save_faces(faces, tmp_path/'faces.npz')
    back = load_faces(tmp_path/'faces.npz')
    assert torch.equal(back.images, faces.images) and torch.equal(back.regions, faces.regions)

bad_csv = {'no column pixels': dict(header=('emotion', 'Usage')),
           '2303 pixels instead of 2304': dict(pixels=' '.join(['1']*2303)),
           'label 7': dict(emotion=7),
           'pixel of 256': dict(pixels=' '.join(['256']*2304)),
           'not a whole number': dict(pixels=' '.join(['x']*2304)),
           'Usage .Test.': dict(Usage='Test')}

@pytest.mark.parametrize('message', bad_csv)
def test_bad_csv(message, faces, tmp_path):
    change = dict(bad_csv[message])
    header = change.pop('header', ('emotion', 'pixels', 'Usage'))
    rows = [csv_row(f, u) for f,u in zip(faces, faces.usage)]
    rows[5] |= change
    with pytest.raises(ValueError, match=message): load_faces(write_csv(tmp_path/'bad.csv', rows, header))

def test_bad_files(faces, tmp_path):
    files = list(kaggle_files(faces))
    with pytest.raises(FileNotFoundError, match='nothing at'): load_faces(tmp_path/'nowhere.zip')
    with pytest.raises(ValueError, match='has no images'): load_faces(write_zip(tmp_path/'a.zip', [('readme.txt', 'hello')]))
    (tmp_path/'b.zip').write_bytes((tmp_path/'a.zip').read_bytes()[:20])
    with pytest.raises(ValueError, match='not a whole zip'): load_faces(tmp_path/'b.zip')
    with pytest.raises(ValueError, match=files[3][0]): load_faces(write_zip(tmp_path/'c.zip', [(n, c[:200] if i==3 else c) for i,(n,c) in enumerate(files)]))
    with pytest.raises(ValueError, match='one class only'): load_faces(write_zip(tmp_path/'d.zip', [(n, c) for n,c in files if '/sad/' in n]))
    with pytest.raises(ValueError, match='no training image of sad'): load_faces(write_zip(tmp_path/'e.zip', [(n, c) for n,c in files if 'train/sad/' not in n]))
    folder = write_folder(tmp_path/'f', files)
    (folder/'train'/'bored').mkdir()
    with pytest.raises(ValueError, match='no image of bored'): load_faces(folder)
    (tmp_path/'g.txt').write_text('?')
    with pytest.raises(ValueError, match='no zip file, folder or csv'): load_faces(tmp_path/'g.txt')

def test_download_without_network_says_what_to_do(monkeypatch):
    import sys
    import types
    fake = types.ModuleType('kagglehub')
    def refuse(handle): raise OSError('no route to host')
    fake.dataset_download = refuse
    monkeypatch.setitem(sys.modules, 'kagglehub', fake)
    with pytest.raises(ConnectionError, match='download the zip'): download_fer2013()
    monkeypatch.setitem(sys.modules, 'kagglehub', None)
    with pytest.raises(ImportError, match='pip install'): download_fer2013()

def write_parquet(path, faces, names, metadata=True):
    pa,pq = pytest.importorskip('pyarrow'),pytest.importorskip('pyarrow.parquet')
    table = pa.table(dict(image=[{'bytes': png(f.image), 'path': None} for f in faces], label=[names.index(f.label) for f in faces]))
    if metadata: table = table.replace_schema_metadata({'huggingface': json.dumps({'info': {'features': {'label': {'_type': 'ClassLabel', 'names': names}}}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)

@pytest.mark.parametrize('names', [sorted(EMOTIONS), list(EMOTIONS)])
def test_parquet_keeps_split_and_translates_labels(faces, tmp_path, names):
    for usage,split in zip(USAGES, ('train', 'validation', 'test')): write_parquet(tmp_path/'hf'/'data'/f'{split}-00000-of-00001.parquet', faces.part(usage), names)
    data = load_faces(tmp_path/'hf')
    assert data.vocab==EMOTIONS
    for usage in USAGES:
        assert torch.equal(data.part(usage).images, faces.part(usage).images) and torch.equal(data.part(usage).labels, faces.part(usage).labels)

def test_parquet_without_names_or_split_is_said_so(faces, tmp_path):
    write_parquet(tmp_path/'faces.parquet', faces, list(EMOTIONS), metadata=False)
    with pytest.warns(UserWarning) as caught: data = load_faces(tmp_path/'faces.parquet')
    texts = ' '.join(str(w.message) for w in caught)
    assert 'order is assumed' in texts and 'a tenth of each class' in texts
    assert torch.equal(data.labels, faces.labels)
    (tmp_path/'cut.parquet').write_bytes((tmp_path/'faces.parquet').read_bytes()[:1000])
    with pytest.raises(ValueError, match='not a whole parquet file'): from_parquet(tmp_path/'cut.parquet')
    with pytest.raises(FileNotFoundError, match='no parquet file'): from_parquet(tmp_path/'none')

def test_a_parquet_file_whose_end_is_damaged_loses_no_class_names(faces, tmp_path):
    names = sorted(EMOTIONS)
    write_parquet(tmp_path/'faces.parquet', faces, names)
    content = (tmp_path/'faces.parquet').read_bytes()
    at = content.rindex(b'huggingface', 0, content.rindex(b'ARROW:schema'))-20
    (tmp_path/'holed.parquet').write_bytes(content[:at] + bytes(400) + content[at+400:])
    with pytest.raises(ValueError, match='not a whole parquet file'): load_faces(tmp_path/'holed.parquet')

@pytest.mark.parametrize('size', [0, -1, 48., True, 10**6, 10**30])
def test_a_size_that_no_picture_has(faces, size, tmp_path):
    save_faces(faces, tmp_path/'faces.npz')
    write_csv(tmp_path/'faces.csv', [csv_row(f, u) for f,u in zip(faces, faces.usage.tolist())])
    write_kaggle(faces, tmp_path/'folder')
    for source in ('faces.csv', 'folder'):
        with pytest.raises(ValueError, match='size is .*: give a number of pixels'): load_faces(tmp_path/source, size=size)
    with pytest.raises(ValueError, match='size|pixels'): load_faces(tmp_path/'faces.npz', size=size)

def test_known_splits_are_named(faces, tmp_path, capsys, monkeypatch):
    assert 'published' in known_split((28709, 3589, 3589)) and 'merged' in known_split((28709, 0, 7178)) and known_split((1, 2, 3)) is None
    from fer_perturb import readers
    monkeypatch.setitem(readers.SPLITS, tuple(len(faces.part(u)) for u in USAGES), 'a split we know')
    for usage,split in zip(USAGES, ('train', 'valid', 'test')): write_parquet(tmp_path/f'{split}.parquet', faces.part(usage), list(EMOTIONS))
    from_parquet(tmp_path)
    assert 'a split we know' in capsys.readouterr().out

def test_tables_of_ones_own(faces, tmp_path):
    files = [tmp_path/f'{i}.png' for i in range(40)]
    for file,face in zip(files, faces): file.write_bytes(png(face.image))
    frame = pd.DataFrame(dict(file=[f.name for f in files], mood=['up', 'down']*20, part=['train']*20 + ['valid']*10 + ['test']*10))
    data = from_frame(frame, 'file', 'mood', 'part', folder=tmp_path)
    assert data.vocab==('down', 'up') and [len(data.part(u)) for u in USAGES]==[20, 10, 10]
    assert torch.equal(data.images, faces.images[:40]) and data[0].label=='up' and data[0].name=='0.png'
    kinds = pd.DataFrame(dict(image=[faces[0].image.numpy(), Image.fromarray(faces[1].image.numpy()), {'bytes': png(faces[2].image)}, png(faces[3].image)]*5, label=[0, 1]*10))
    with pytest.warns(UserWarning, match='a tenth'): numbers = from_frame(kinds, vocab=('b', 'a'))
    assert torch.equal(numbers.images[:4], faces.images[:4]) and numbers.labels[:2].tolist()==[0, 1] and numbers.vocab==('b', 'a')
    with pytest.raises(ValueError, match='row 0 has label 5'): from_frame(kinds.assign(label=5), vocab=('b', 'a'))
    with pytest.raises(ValueError, match="row 0 has split .*'x'"): from_frame(frame.assign(part='x'), 'file', 'mood', 'part', folder=tmp_path)
    with pytest.raises(ValueError, match='is a float'): from_frame(kinds.assign(image=1.5))
    with pytest.raises(FileNotFoundError): from_frame(frame.assign(file='gone.png'), 'file', 'mood', folder=tmp_path)
