"""What people really bring: one row a form, with the exact images, labels and parts that come out, or the exact sentence.
A file of a row is (path, number of the face in it); what is expected of it is a class and a part: 0 Training, 1 PublicTest, 2 PrivateTest"""
import gzip
import io
import json
import os
import shutil
import struct
import tarfile
import zipfile
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fer_perturb.data import EMOTIONS, USAGES, FERData
from fer_perturb.readers import cache_folder, load_faces, read_faces, save_faces


def picture(image, kind='PNG', **options):
    file = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(file, kind, **options)
    return file.getvalue()

def as_folder(path, files):
    for name,content in files:
        (path/name).parent.mkdir(parents=True, exist_ok=True)
        (path/name).write_bytes(content)
    return path

def as_zip(path, files, around=''):
    path = path.with_suffix('.zip')
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
        for name,content in files: z.writestr(around+name, content)
    return path

def as_tar(path, files, kind='', around=''):
    path = path.with_suffix(f'.tar{kind and "."+kind}')
    with tarfile.open(path, f'w:{kind}') as tar:
        for name,content in files:
            info = tarfile.TarInfo(around+name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path

def as_nested(path, files):
    "One zip for each first folder, in a zip"
    files,tops = list(files),sorted({name.split('/')[0] for name,_ in files})
    inner = {top: as_zip(path.with_name(f'inner-{top}'), [(n.split('/', 1)[1], c) for n,c in files if n.startswith(f'{top}/')]) for top in tops}
    return as_zip(path, [(f'{top}.zip', file.read_bytes()) for top,file in inner.items()])

CONTAINERS = dict(folder=as_folder, zip=as_zip, tar=as_tar, nested=as_nested, gz=lambda p,f: as_tar(p, f, 'gz'), xz=lambda p,f: as_tar(p, f, 'xz'),
                  around=lambda p,f: as_zip(p, f, 'My Faces v2/'), test_around=lambda p,f: as_zip(p, f, 'test/'), train_around=lambda p,f: as_tar(p, f, 'gz', 'Training/'))
THREE = dict(train=0, valid=1, test=2)
TWO = dict(happy='happy', sad='sad')

# container, template of a path, words for parts, words for classes
LAYOUTS = {
    'kaggle': ('zip', '{p}/{c}/{i}.png', THREE, TWO),
    'plain folder': ('folder', '{p}/{c}/{i}.png', THREE, TWO),
    'tar': ('tar', '{p}/{c}/{i}.png', THREE, TWO),
    'tar.gz': ('gz', '{p}/{c}/{i}.png', THREE, TWO),
    'tar.xz': ('xz', '{p}/{c}/{i}.png', THREE, TWO),
    'a zip for each part': ('nested', '{p}/{c}/{i}.png', THREE, TWO),
    'long words': ('zip', '{p}/{c}/{i}.png', dict(Training=0, Validation=1, Testing=2), TWO),
    'eval is a test': ('folder', '{p}/{c}/{i}.png', dict(train=0, dev=1, eval=2), TWO),
    'eval beside a test': ('gz', '{p}/{c}/{i}.png', dict(train=0, evaluation=1, test=2), TWO),
    'numbers around': ('zip', '{p}/{c}/{i}.png', {'01_train': 0, '02-val': 1, '3. TEST': 2}, TWO),
    'one word': ('folder', '{p}/{c}/{i}.png', dict(TrainSet=0, valset=1, TESTDATA=2), TWO),
    'two words': ('zip', '{p}/{c}/{i}.png', {'Train Images': 0, 'Public Test': 1, 'private_test': 2}, TWO),
    'held out': ('xz', '{p}/{c}/{i}.png', {'trn': 0, 'development': 1, 'hold-out': 2}, TWO),
    'with a name in front': ('zip', '{p}/{c}/{i}.png', dict(RAF_train=0, RAF_valid=1, RAF_test=2), TWO),
    'part below class': ('folder', '{c}/{p}/{i}.png', THREE, TWO),
    'part below class, in a tar': ('xz', '{c}/{p}/{i}.png', dict(training=0, validation=1, testing=2), TWO),
    'names': ('zip', '{c}/{p}_{i:05}_aligned.png', THREE, TWO),
    'names after numbers': ('folder', '{c}/{i:05}-{p}.png', dict(Train=0, Val=1, Test=2), TWO),
    'names in capitals': ('gz', '{c}/{p}{i}.png', dict(TRAINING=0, PUBLICTEST=1, PRIVATETEST=2), TWO),
    "names of FER2013": ('around', '{c}/{p}_{i}.png', dict(Training=0, PublicTest=1, PrivateTest=2), TWO),
    'a folder around': ('around', '{p}/{c}/{i}.png', THREE, TWO),
    'test around': ('test_around', '{p}/{c}/{i}.png', THREE, TWO),
    'Training around': ('train_around', '{p}/{c}/{i}.png', dict(train=0, dev=1, testing=2), TWO),
    'test around names': ('test_around', '{c}/{p}_{i}.png', THREE, TWO),
    'class, then person': ('folder', '{p}/{c}/anna/{i}.png', THREE, TWO),
    'person, then class': ('zip', '{p}/bob/{c}/{i}.png', THREE, TWO),
    'person around a part': ('folder', 's{i:02}/{p}/{c}/{i}.png', THREE, TWO),
    'deep': ('xz', 'a/b/{p}/x/{c}/y/z/{i}.png', THREE, TWO),
    'own classes': ('zip', '{p}/{c}/{i}.png', THREE, dict(dog='dog', cat='cat')),
    'own classes, then persons': ('folder', '{p}/{c}/p{i}/{i}.png', THREE, dict(dog='dog', cat='cat')),
    'persons, then own classes': ('folder', '{p}/p{i}/{c}/{i}.png', THREE, dict(dog='dog', cat='cat')),
    'spellings': ('zip', '{p}/{c}/{i}.png', THREE, {'Happy': 'happy', 'HAPPY': 'happy', 'happy ': 'happy', 'Sad': 'sad'}),
    'synonyms': ('folder', '{p}/{c}/{i}.png', THREE, dict(happiness='happy', joy='happy', Sadness='sad', anger='angry')),
    'numbered classes': ('gz', '{p}/{c}/{i}.png', THREE, {'0_angry': 'angry', '3-Happy': 'happy', '04. Joy': 'happy'}),
    'all emotions and one more': ('zip', '{p}/{c}/{i}.png', THREE, {e: e for e in (*EMOTIONS, 'contempt')}),
    'other endings': ('folder', '{p}/{c}/{i}.PGM', THREE, TWO),
    'bmp': ('zip', '{p}/{c}/{i}.bmp', THREE, TWO),
    'tif': ('zip', '{p}/{c}/{i}.TIF', THREE, TWO),
    'emotion around': ('folder', '{c}/happy_set_of_anna/{p}/{i}.png', THREE, TWO)}

ENDINGS = dict(png='PNG', pgm='PPM', bmp='BMP', tif='TIFF')

def files_of(faces, template, parts, classes):
    "Contents of all files, and class and part that are expected of each image"
    contents,expected,i = [],{},0
    for word,part in parts.items():
        for folder,label in classes.items():
            for _ in range(3):
                name = template.format(p=word, c=folder, i=i)
                contents.append((name, picture(faces.images[i], ENDINGS[name.rsplit('.')[-1].lower()])))
                expected[faces.images[i].numpy().tobytes()] = label,part
                i += 1
    return contents,expected

def found_in(data): return {image.numpy().tobytes(): (data.vocab[l], u) for image,l,u in zip(data.images, data.labels.tolist(), data.usage.tolist())}

@pytest.mark.parametrize('name', LAYOUTS)
def test_layouts(name, faces, tmp_path, capsys):
    container,template,parts,classes = LAYOUTS[name]
    contents,expected = files_of(faces, template, parts, classes)
    source = CONTAINERS[container](tmp_path/'set', contents)
    for _ in range(2): # the second time from the cache
        data = load_faces(source)
        assert found_in(data)==expected and len(data)==len(expected)
        line = capsys.readouterr().out
        assert line.count('\n')==1 and f'{len(expected):,} images' in line and 'by the ' in line and f'PrivateTest {3*len(classes)}' in line

def table_rows(faces, n=18, words=('train', 'valid', 'test'), names=EMOTIONS):
    return [dict(i=i, emotion=i%2*3, word=names[i%2*3], split=words[i//2%3], pixels=' '.join(map(str, faces.images[i].flatten().tolist()))) for i in range(n)]

def expected_rows(faces, n=18): return {faces.images[i].numpy().tobytes(): (EMOTIONS[i%2*3], i//2%3) for i in range(n)}

def text_of(rows, columns, sep=',', end='\n', quote='', blank=''):
    lines = [sep.join(f'{quote}{blank}{c}{quote}' for c in columns.values())]
    lines += [sep.join(f'{quote}{blank}{row[c] if c in row else c}{quote}' for c in columns) for row in rows]
    return end.join(lines)+end

FER = dict(emotion='emotion', pixels='pixels', split='Usage')
TABLES = {
    'fer2013.csv': (FER, dict(words=USAGES), {}, 'utf-8'),
    'icml_face_data.csv': (dict(emotion='emotion', split=' Usage', pixels=' pixels'), dict(words=USAGES), {}, 'utf-8'),
    'BOM': (FER, dict(words=USAGES), {}, 'utf-8-sig'),
    'UTF-16': (FER, dict(words=USAGES), {}, 'utf-16'),
    'UTF-16 without a mark': (FER, {}, {}, 'utf-16-le'),
    'semicolons': (FER, {}, dict(sep=';'), 'utf-8'),
    'tabs': (FER, {}, dict(sep='\t'), 'utf-8'),
    'quotes': (FER, {}, dict(quote='"'), 'utf-8'),
    'blanks': (FER, {}, dict(blank='  '), 'utf-8'),
    'quotes and blanks': (FER, {}, dict(quote='"', sep=', '), 'utf-8'),
    'line ends of Windows': (FER, {}, dict(end='\r\n'), 'utf-8'),
    'line ends of an old Mac': (FER, {}, dict(end='\r'), 'utf-8'),
    'empty lines': (FER, {}, dict(end='\n\n'), 'utf-8'),
    'a column split': (dict(split='split', pixels='pixels', emotion='label'), dict(words=('Training', 'dev', 'testing')), {}, 'utf-8'),
    'a column set': (dict(split='Set', pixels='Pixels', emotion='Emotion'), dict(words=('TRAIN', 'Val', 'Test')), {}, 'utf-8'),
    'words for classes': (dict(word='emotion', pixels='pixels', split='Usage'), dict(names=[e.upper() for e in EMOTIONS]), {}, 'utf-8'),
    'numbers and words': (dict(emotion='label', word='label_name', pixels='pixels', split='Usage'), {}, {}, 'utf-8')}

@pytest.mark.parametrize('name', TABLES)
def test_tables(name, faces, tmp_path):
    columns,rows,form,encoding = TABLES[name]
    (tmp_path/'set.csv').write_bytes(text_of(table_rows(faces, **rows), columns, **form).encode(encoding))
    data = load_faces(tmp_path/'set.csv')
    assert found_in(data)==expected_rows(faces) and data.vocab==('angry', 'happy')

def test_tables_with_odd_numbers(faces, tmp_path):
    rows = table_rows(faces)
    for i,row in enumerate(rows): row |= dict(emotion=f'{row["emotion"]}.0', pixels=f'[{row["pixels"].replace(" ", ", ")}]' if i%2 else row['pixels'])
    (tmp_path/'set.csv').write_text(text_of(rows, FER, sep=';'))
    assert found_in(load_faces(tmp_path/'set.csv'))==expected_rows(faces)
    wide = [[r['emotion'], r['split'], *faces.images[r['i']].flatten().tolist()] for r in rows]
    pd.DataFrame(wide, columns=['label', 'split', *(f'pixel{i}' for i in range(48*48))]).to_csv(tmp_path/'wide.csv', index=False)
    assert found_in(load_faces(tmp_path/'wide.csv'))==expected_rows(faces)

def test_a_table_with_eight_classes_or_with_names_of_ones_own(faces, tmp_path):
    eight = (*EMOTIONS, 'contempt')
    rows = [r | dict(emotion=r['i']%8) for r in table_rows(faces, 48, USAGES)]
    (tmp_path/'set.csv').write_text(text_of(rows, FER))
    with pytest.raises(ValueError, match='line 9 has label 7: emotions go from 0'): load_faces(tmp_path/'set.csv')
    data = load_faces(tmp_path/'set.csv', vocab=eight)
    assert data.vocab==eight and found_in(data)=={faces.images[r['i']].numpy().tobytes(): (eight[r['i']%8], r['i']//2%3) for r in rows}
    with pytest.raises(ValueError, match='do not go together one to one'):
        (tmp_path/'odd.csv').write_text(text_of(rows, dict(emotion='label', word='label_name', pixels='pixels', split='Usage')))
        load_faces(tmp_path/'odd.csv')

def test_rows_without_a_label_are_left_out_and_counted(faces, tmp_path):
    rows = table_rows(faces)
    for i,missing in zip(range(5), ('', 'NaN', '-1', 'null', ' None ')): rows[i]['emotion'] = missing
    (tmp_path/'set.csv').write_text(text_of(rows, FER))
    with pytest.warns(UserWarning, match='5 of 18 rows have no label'): data = load_faces(tmp_path/'set.csv')
    assert len(data)==13 and set(found_in(data).items())<=set(expected_rows(faces).items())

def hub_file(path, faces, rows, names, part=None, schema=True, column='label'):
    pa,pq = pytest.importorskip('pyarrow'),pytest.importorskip('pyarrow.parquet')
    columns = {'image': [{'bytes': picture(faces.images[r['i']]), 'path': None} for r in rows], column: [names.index(EMOTIONS[r['emotion']]) for r in rows]}
    if part: columns['split'] = [part]*len(rows)
    features = {column: {'_type': 'ClassLabel', 'names': list(names)}}
    table = pa.table(columns).replace_schema_metadata({'huggingface': json.dumps({'info': {'features': features}})} if schema else None)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)

PARQUETS = {'file names': '{}-00000-of-00001.parquet', 'data/': 'data/{}-00000-of-00001-8d0e2c.parquet', 'folders': 'default/{}/0000.parquet', 'my_{}': 'my_{}.parquet'}

@pytest.mark.parametrize('container', ['folder', 'zip', 'xz'])
@pytest.mark.parametrize('form', PARQUETS)
def test_parquet(form, container, faces, tmp_path):
    rows,names = table_rows(faces),{'train': sorted(EMOTIONS), 'validation': list(EMOTIONS), 'test': sorted(EMOTIONS, reverse=True)}
    for u,word in enumerate(names): hub_file(tmp_path/'set'/PARQUETS[form].format(word), faces, [r for r in rows if r['i']//2%3==u], names[word])
    files = [(f.relative_to(tmp_path/'set').as_posix(), f.read_bytes()) for f in (tmp_path/'set').rglob('*.parquet')]
    data = load_faces(CONTAINERS[container](tmp_path/'packed', files))
    assert found_in(data)==expected_rows(faces)

def test_parquet_shards_and_a_column_of_parts(faces, tmp_path):
    rows = table_rows(faces)
    for u,word in enumerate(('train', 'validation', 'test')):
        of = [r for r in rows if r['i']//2%3==u]
        for i in range(3): hub_file(tmp_path/'shards'/f'{word}-{i:05}-of-00003.parquet', faces, of[2*i:2*i+2], EMOTIONS)
        hub_file(tmp_path/'column'/f'{u}.parquet', faces, of, EMOTIONS, word)
        hub_file(tmp_path/'odd'/f'{word}.parquet', faces, of, EMOTIONS, 'train')
    for name in ('shards', 'column'): assert found_in(load_faces(tmp_path/name))==expected_rows(faces), name
    with pytest.raises(ValueError, match='by its file, and train by its column'): load_faces(tmp_path/'odd')
    hub_file(tmp_path/'missing'/'train.parquet', faces, rows, EMOTIONS)
    hub_file(tmp_path/'missing'/'extra.parquet', faces, rows, EMOTIONS)
    with pytest.raises(ValueError, match='name no part, such as extra.parquet'): load_faces(tmp_path/'missing')

def test_a_data_set_of_the_hub_and_a_frame_of_paths(faces, tmp_path):
    rows,names = table_rows(faces),sorted(EMOTIONS)
    class Rows:
        def __init__(self, rows, split):
            self.rows,self.split,self.features = rows,split,dict(image=None, label=SimpleNamespace(names=names))
        def to_pandas(self):
            return pd.DataFrame(dict(image=[{'bytes': picture(faces.images[r['i']])} for r in self.rows], label=[names.index(EMOTIONS[r['emotion']]) for r in self.rows]))
    sets = {word: Rows([r for r in rows if r['i']//2%3==u], word) for u,word in enumerate(('train', 'validation', 'test'))}
    assert found_in(load_faces(sets))==expected_rows(faces)
    alone = load_faces(sets['test'])
    assert set(found_in(alone).values())=={('angry', 2), ('happy', 2)}
    as_folder(tmp_path/'pics', [(f'{r["i"]}.png', picture(faces.images[r['i']])) for r in rows])
    frame = pd.DataFrame([dict(Path=str(tmp_path/'pics'/f'{r["i"]}.png'), Expression=r['word'], Split=r['split']) for r in rows])
    assert found_in(load_faces(frame))==expected_rows(faces)
    assert found_in(load_faces(frame.assign(Expression=[dict(angry='anger', happy='Joy')[r['word']] for r in rows])))==expected_rows(faces)
    assert load_faces(frame.assign(Expression=[float(r['i']%2) for r in rows])).vocab==('0', '1')
    frame.assign(Path=[f'pics/{r["i"]}.png' for r in rows]).to_csv(tmp_path/'paths.csv', index=False)
    assert found_in(load_faces(tmp_path/'paths.csv'))==expected_rows(faces)
    (tmp_path/'both').mkdir()
    shutil.move(tmp_path/'pics', tmp_path/'both'/'pics')
    shutil.move(tmp_path/'paths.csv', tmp_path/'both'/'paths.csv')
    assert found_in(load_faces(tmp_path/'both'))==expected_rows(faces)
    assert found_in(load_faces(shutil.make_archive(tmp_path/'packed', 'zip', tmp_path/'both')))==expected_rows(faces)

def test_tables_in_containers(faces, tmp_path, capsys):
    rows = table_rows(faces, words=USAGES)
    fer,bare = text_of(rows, FER).encode(),text_of([r for r in rows if r['split']=='Training'], dict(emotion='emotion', pixels='pixels')).encode()
    inner = as_tar(tmp_path/'fer2013', [('fer2013/fer2013.csv', fer), ('fer2013/README', b'hello')], 'gz').read_bytes()
    sources = [as_zip(tmp_path/'a', [('fer2013/fer2013.csv', fer)]), as_tar(tmp_path/'b', [('fer2013.csv', fer), ('README.md', b'hello')], 'xz'),
               as_folder(tmp_path/'c', [('deep/fer2013.csv', fer)]), tmp_path/'fer2013.tar.gz', as_zip(tmp_path/'d', [('x/fer2013.tar.gz', inner)]),
               as_zip(tmp_path/'challenge', [('train.csv', bare), ('test.csv', b'pixels\n1 2 3\n'), ('icml_face_data.csv', fer), ('fer2013.tar.gz', inner), ('example_submission.csv', b'emotion\n0\n')])]
    (tmp_path/'fer2013.csv.gz').write_bytes(gzip.compress(fer))
    for source in (*sources, tmp_path/'fer2013.csv.gz'): assert found_in(load_faces(source))==expected_rows(faces), source.name
    assert 'read from icml_face_data.csv, and not from example_submission.csv, fer2013.tar.gz, test.csv' in capsys.readouterr().out
    parts = [(f'{w}.csv', text_of([r for r in rows if r['split']==u], dict(emotion='emotion', pixels='pixels')).encode()) for w,u in zip(('train', 'val', 'test'), USAGES)]
    assert found_in(load_faces(as_zip(tmp_path/'parts', parts)))==expected_rows(faces)
    with pytest.raises(ValueError, match='holds several tables'): load_faces(as_zip(tmp_path/'two', [('a.csv', fer), ('b.csv', fer)]))
    with pytest.raises(ValueError, match='holds images, and pixels in fer2013.csv'): load_faces(as_zip(tmp_path/'mix', [('fer2013.csv', fer), ('happy/1.png', picture(faces.images[0]))]))

def changed(file, change, at=None):
    content = bytearray(file.read_bytes())
    change(content)
    file.write_bytes(content)
    return file

def keep_a_third(content):
    "The record at the end of a zip says that its list is a third as long"
    end = content.rfind(b'PK\5\6')
    size,start = struct.unpack_from('<2L', content, end+12)
    third = content[start:].find(b'PK\1\2', size//3)
    record = content[end:end+12] + struct.pack('<L', third) + content[end+16:]
    content[:] = content[:start+third] + record

REFUSED = {
    'a word nobody knows, beside known ones': (['train/happy/1', 'train/sad/2', 'extra/sad/3'], '1 of 3 images name no part, such as extra/sad/3.png .extra: is that a part'),
    'some names carry a part': (['happy/train_1', 'sad/train_2', 'sad/holiday'], 'name no part, such as sad/holiday.png'),
    'a word that looks like a part': (['vaild/happy/1', 'vaild/sad/2'], 'vaild: is that a part'),
    'two parts in one word': (['trainval/happy/1', 'trainval/sad/2'], 'trainval: is that a part'),
    'folds': (['fold1/happy/1', 'fold2/sad/2'], 'fold1, fold2: is that a part'),
    'folder against name': (['train/happy/test_1', 'train/sad/test_2', 'test/sad/test_3'], 'in one part by its folder and in another by its name'),
    'two parts in one path': (['train/happy/test/1', 'test/sad/2'], 'names two parts'),
    'two emotions in one path': (['happy/sad/1', 'happy/fear/2'], 'names 2 emotions'),
    'no class': (['train/1', 'test/2'], 'test/2.png is in no class folder'),
    'some without a class': (['train/happy/1', 'train/sad/2', 'train/3'], 'train/3.png is in no class folder'),
    'person or class': (['ann/calm/1', 'ann/moved/2', 'bob/calm/3', 'bob/moved/4'], 'the classes may be ann, bob, … or calm, moved, …'),
    'one class': (['happy/1', 'happy/2'], 'training images of one class only .happy.'),
    'a class without training images': (['train/happy/1', 'train/sad/2', 'test/fear/3'], 'no training image of fear'),
    'a class that nobody can read': (['happy/1', 'sad/2', 'fear/3.heic'], 'no image of fear'),
    'a folder that climbs out': (['happy/1', 'sad/2', '../evil/1'], "holds '../evil/1.png', a name that leads out of the archive"),
    'a folder at the root': (['happy/1', 'sad/2', '/evil/1'], "holds '/evil/1.png', a name that leads out of the archive"),
    'a folder on a drive': (['happy/1', 'sad/2', 'C:/evil/1'], "holds 'C:/evil/1.png', a name that leads out of the archive")}

@pytest.mark.parametrize('container', ['zip', 'gz'])
@pytest.mark.parametrize('name', REFUSED)
def test_refused_layouts(name, container, faces, tmp_path):
    paths,sentence = REFUSED[name]
    files = [(p if p.endswith('.heic') else f'{p}.png', picture(faces.images[i])) for i,p in enumerate(paths)]
    with pytest.raises(ValueError, match=sentence): load_faces(CONTAINERS[container](tmp_path/'set', files))

def test_damaged_archives_are_refused_by_name(faces, tmp_path):
    files,_ = files_of(faces, '{p}/{c}/{i}.png', THREE, TWO)
    size = len(as_zip(tmp_path/'whole', files).read_bytes())
    def flip(at): return lambda content: content.__setitem__(at, content[at]^1)
    def name_in_list(content): content[content.rfind(b'sad/')] ^= 1
    damages = dict(cut=lambda c: c.__delitem__(slice(size//2, None)), tail=lambda c: c.__delitem__(slice(-3, None)), third=keep_a_third,
                   data=flip(200), renamed=name_in_list, ending=lambda c: c.__setitem__(c.rfind(b'.png'), ord('_')))
    for name,damage in damages.items():
        with pytest.raises(ValueError, match=f'{name}.zip'): load_faces(changed(as_zip(tmp_path/name, files), damage))
    (tmp_path/'text.zip').write_text('<html>Sign in</html>')
    with pytest.raises(ValueError, match='text.zip is not a whole zip'): load_faces(tmp_path/'text.zip')
    for kind in ('', 'gz', 'xz', 'bz2'):
        file = as_tar(tmp_path/f'torn{kind}', files, kind)
        whole = file.read_bytes()
        last = tarfile.open(file).getmembers()[-1]
        for cut in (10, len(whole)//2, len(whole)-4 if kind else last.offset_data + (last.size+511)//512*512):
            file.write_bytes(whole[:cut])
            with pytest.raises(ValueError, match=f'torn{kind}'): load_faces(file)
    def header(content): content[tarfile.open(fileobj=io.BytesIO(content)).getmembers()[5].offset] ^= 1
    with pytest.raises(ValueError, match='a header is damaged'): load_faces(changed(as_tar(tmp_path/'head', files), header))

def test_bombs_secrets_and_foreign_archives_are_refused(faces, tmp_path):
    files,_ = files_of(faces, '{p}/{c}/{i}.png', THREE, TWO)
    bomb = as_zip(tmp_path/'bomb', [*files, ('train/happy/bomb.png', bytes(70_000_000))])
    with pytest.raises(ValueError, match='bomb.png unpacks from .* that is no data set but a bomb'): load_faces(bomb)
    (tmp_path/'bomb.tar.gz').write_bytes(gzip.compress(bytes(70_000_000)))
    with pytest.raises(ValueError, match='no data set but a bomb'): load_faces(tmp_path/'bomb.tar.gz')
    def encrypt(content):
        at = -1
        while (at := content.find(b'PK\1\2', at+1))>=0: content[at+8] |= 1
    with pytest.raises(ValueError, match='0.png is encrypted'): load_faces(changed(as_zip(tmp_path/'secret', files), encrypt))
    with pytest.warns(UserWarning, match='Duplicate name'), zipfile.ZipFile(tmp_path/'twice.zip', 'w') as z:
        for name,content in [*files, files[0]]: z.writestr(name, content)
    with pytest.raises(ValueError, match='0.png twice'): load_faces(tmp_path/'twice.zip')
    (tmp_path/'x.7z').write_bytes(b"7z\xbc\xaf'\x1c0000")
    with pytest.raises(ValueError, match='x.7z is a 7z archive'): load_faces(tmp_path/'x.7z')

def test_what_a_system_leaves_is_no_data(faces, tmp_path):
    files,expected = files_of(faces, '{p}/{c}/{i}.png', THREE, TWO)
    junk = [('__MACOSX/train/happy/._0.png', b'x'), ('train/happy/._0.png', b'x'), ('.DS_Store', b'x'), ('train/.DS_Store', b'x'), ('test/sad/Thumbs.db', b'x'),
            ('.ipynb_checkpoints/0-checkpoint.png', files[0][1]), ('train/sad/.ipynb_checkpoints/3-checkpoint.png', files[3][1]), ('desktop.ini', b'x'), ('README.md', b'x')]
    for container in ('folder', 'zip', 'xz'): assert found_in(load_faces(CONTAINERS[container](tmp_path/container, files+junk)))==expected, container

def test_what_is_left_out_is_counted(faces, tmp_path):
    files,expected = files_of(faces, '{p}/{c}/{i}.png', THREE, TWO)
    folder = as_folder(tmp_path/'set', files+[('train/happy/clip.mp4', b'x'), ('train/happy/clip2.mp4', b'x')])
    (folder/'train'/'sad'/'gone.png').symlink_to(tmp_path/'nowhere.png')
    for _ in range(2):
        with pytest.warns(UserWarning, match='1 links that lead nowhere, such as train/sad/gone.png; 2 files that are no images, such as train/happy/clip.mp4'):
            assert found_in(load_faces(folder))==expected
    unlabelled = as_zip(tmp_path/'nan', files+[('train/nan/1.png', files[0][1]), ('train/-1/2.png', files[0][1])])
    with pytest.warns(UserWarning, match='2 images are in a folder that means no label'): assert found_in(load_faces(unlabelled))==expected

@pytest.mark.skipif(os.name=='nt', reason='links need rights there')
def test_linked_folders_are_read_and_a_loop_ends(faces, tmp_path):
    files,expected = files_of(faces, '{p}/{c}/{i}.png', THREE, TWO)
    real = as_folder(tmp_path/'real', files)
    (tmp_path/'set').mkdir()
    for part in THREE: (tmp_path/'set'/part).symlink_to(real/part)
    (real/'train'/'sad'/'loop').symlink_to(tmp_path/'set'/'train')
    assert found_in(load_faces(tmp_path/'set'))==expected

def test_synonyms_are_said_and_can_be_switched_off(faces, tmp_path, capsys):
    files,_ = files_of(faces, '{p}/{c}/{i}.png', THREE, dict(joy='joy', happy='happy', sad='sad'))
    source = as_zip(tmp_path/'set', files)
    assert load_faces(source).vocab==('happy', 'sad') and "'joy' is happy" in capsys.readouterr().out
    assert load_faces(source, synonyms=False).vocab==('happy', 'joy', 'sad')

def test_a_set_for_testing_only_stays_that(faces, tmp_path):
    files,expected = files_of(faces, '{c}/{i}.png', dict(test=2), TWO)
    assert found_in(load_faces(as_zip(tmp_path/'set', files, 'test/')))==expected

def test_what_is_drawn_comes_from_training(faces, tmp_path, recwarn):
    files,expected = files_of(faces, '{p}/{c}/{i}.png', dict(training=0, testing=2), {e: e for e in EMOTIONS})
    found = found_in(load_faces(as_zip(tmp_path/'set', files)))
    assert {k: v for k,v in expected.items() if v[1]==2}=={k: v for k,v in found.items() if v[1]==2}
    assert 'names no PublicTest part' in ' '.join(str(w.message) for w in recwarn) and sum(v[1]==1 for v in found.values())==7

def frames_of(faces, persons=12, frames=5):
    "Videos: a class, a person and a frame for each file, with hardly any change from frame to frame"
    for p in range(persons):
        for c in range(2):
            for f in range(frames): yield f'{("happy", "sad")[c]}/person{p:02}/{f}.png',picture(faces.images[p*7+c]//2+f)

def parts_of_groups(data, group): return {g: {u for n,u in zip(data.names, data.usage.tolist()) if group(n)==g} for g in {group(n) for n in data.names}}

def test_frames_of_a_video_are_seen_and_groups_keep_them_together(faces, tmp_path):
    source,person = as_zip(tmp_path/'set', frames_of(faces)),lambda name: str(name).split('/')[1]
    for _ in range(2):
        with pytest.warns(UserWarning, match='have a near twin in another part that was drawn, such as .*Keep them together with groups='): data = load_faces(source)
    assert any(len(u)>1 for u in parts_of_groups(data, person).values())
    for groups in (1, -2, person):
        data = load_faces(source, groups=groups)
        assert all(len(u)==1 for u in parts_of_groups(data, person).values())
        assert min(len(data.part(u)) for u in USAGES)>=5 and set(data.part('Training').labels.tolist())=={0, 1}
    given = as_zip(tmp_path/'given', [(f'{"train" if n.endswith(("0.png", "1.png")) else "test"}/{n}', c) for n,c in frames_of(faces)])
    with pytest.warns(UserWarning, match='12 of 12 groups are in more than one part, such as person00'): load_faces(given, groups=2)
    with pytest.raises(ValueError, match='not every path has a folder number 7'): load_faces(source, groups=7)
    with pytest.raises(ValueError, match='there is no column person'): load_faces(source, groups='person')

def test_groups_by_a_column(faces, tmp_path):
    rows = [dict(r, person=f'p{r["i"]//6}') for r in table_rows(faces, 120)]
    (tmp_path/'set.csv').write_text(text_of(rows, dict(emotion='emotion', pixels='pixels', person='Person')))
    data = load_faces(tmp_path/'set.csv', groups='Person')
    parts = {}
    for g,u in zip(data.column('groups'), data.usage.tolist()): parts.setdefault(str(g), set()).add(u)
    assert len(parts)==20 and all(len(u)==1 for u in parts.values()) and set.union(*parts.values())=={0, 1, 2}

def test_the_cache_is_renewed_with_the_readers_and_trusts_nothing(faces, tmp_path, monkeypatch):
    from fer_perturb import readers
    files,expected = files_of(faces, '{p}/{c}/{i}.png', THREE, TWO)
    source = as_zip(tmp_path/'set', files)
    load_faces(source)
    kept, = cache_folder().iterdir()
    whole = kept.read_bytes()
    def wrong_labels():
        with np.load(kept) as z: arrays = dict(z)
        with open(kept, 'wb') as f: np.savez(f, **arrays | dict(labels=1-arrays['labels']))
    def folder(): kept.unlink(), kept.mkdir(), (kept/'x').write_text('x')
    for damage in (lambda: kept.write_bytes(b''), lambda: kept.write_bytes(whole[:-99]), lambda: np.savez(kept, x=1), folder, wrong_labels,
                   lambda: save_faces(FERData(faces.images[:2], [0,1]), kept)):
        damage()
        assert found_in(load_faces(source))==expected
        assert kept.is_file() and len(kept.read_bytes())==len(whole)
    (cache_folder()/'.other.npz.999999999.part').write_text('of a killed process')
    assert load_faces(source, size=24).images.shape[1:]==(24, 24)
    assert len(list(cache_folder().iterdir()))==2
    monkeypatch.setattr(readers, '_parser_version', lambda: 'newer')
    assert found_in(load_faces(source))==expected and len(list(cache_folder().iterdir()))==3

def test_a_cache_that_cannot_be_written_costs_the_cache(faces, tmp_path, monkeypatch):
    files,expected = files_of(faces, '{p}/{c}/{i}.png', THREE, TWO)
    source = as_zip(tmp_path/'set', files)
    (tmp_path/'a file').write_text('x')
    monkeypatch.setenv('FER_PERTURB_CACHE', str(tmp_path/'a file'/'cache'))
    with pytest.warns(UserWarning, match='the cache in .* cannot be written'): assert found_in(load_faces(source))==expected
    monkeypatch.setenv('FER_PERTURB_CACHE', str(tmp_path/'full'))
    def full(*args, **kwargs): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(np, 'savez', full)
    with pytest.warns(UserWarning, match='No space left on device'): assert found_in(load_faces(source))==expected
    assert not list((tmp_path/'full').iterdir())

def test_a_saved_file_keeps_its_size_and_a_foreign_one_is_refused(faces, tmp_path):
    save_faces(faces[:10], tmp_path/'set.npz')
    assert load_faces(tmp_path/'set.npz', size=48).images.shape==(10, 48, 48)
    with pytest.raises(ValueError, match='48×48 pixels, asked for is 96'): load_faces(tmp_path/'set.npz', size=96)
    for content in (b'', b'PK', (tmp_path/'set.npz').read_bytes()[:3000]):
        (tmp_path/'odd.npz').write_bytes(content)
        with pytest.raises(ValueError, match='odd.npz is not a whole file of save_faces'): read_faces(tmp_path/'odd.npz')

def made_up(faces, rng):
    "A set with classes, parts, names and size of its own"
    vocab = [EMOTIONS, ('happy', 'sad'), ('zebra', 'Ant', 'bee'), ('joy', 'happy', 'Fury'), tuple('0123456789'), (*EMOTIONS, 'contempt'), ('été', 'naïve')][rng.integers(7)]
    n,k = int(rng.integers(4, 60))+len(vocab)*2,len(vocab)
    labels = np.concatenate([np.arange(k), rng.integers(0, k, n-k)])
    usage = np.concatenate([np.zeros(k), rng.choice([(0,1,2), (0,2), (0,1), (0,)][rng.integers(4)], n-k)]).astype(np.uint8)
    names = [list(map(str, range(n))), [f'{i}.png' for i in range(n)], [f'train/x/Training_{i}.jpg' for i in range(n)], [f'a b/test-{i}, "x".png' for i in range(n)]][rng.integers(4)]
    size,rows = int(rng.choice([16, 24, 48])),torch.from_numpy(rng.permutation(420)[:n])
    images = torch.nn.functional.adaptive_avg_pool2d(faces.images[rows][:,None].float(), size)[:,0].byte()
    order = rng.permutation(n)
    return FERData(images[order], labels[order], usage[order], [names[i] for i in order], vocab)

@pytest.mark.parametrize('seed', range(12))
def test_what_is_written_comes_back(seed, faces, tmp_path, capsys):
    from fer_perturb.writers import write_csv, write_kaggle
    rng = np.random.default_rng(seed)
    data = made_up(faces, rng)
    size,label = data.images.shape[1],lambda d: [d.vocab[c] for c in d.labels.tolist()]
    save_faces(data.with_columns(votes=torch.rand(len(data), 3), group=[f'g{i}' for i in range(len(data))]), tmp_path/'set.npz')
    back = load_faces(tmp_path/'set.npz')
    assert back.vocab==data.vocab and back.column_names==['images', 'labels', 'usage', 'names', 'votes', 'group'] and back.column('votes').dtype==torch.float32
    write_csv(data, tmp_path/'set.csv')
    write_kaggle(data, tmp_path/'set')
    table,folder = load_faces(tmp_path/'set.csv', size=size, synonyms=False),load_faces(tmp_path/'set', size=size, synonyms=False)
    where = {name.split('/')[-1].split('_', 1)[-1]: i for i,name in enumerate(folder.names.tolist())}
    stem = [str(n).rsplit('/', 1)[-1].removeprefix('Training_').rsplit('.', 1)[0]+'.png' for n in data.names]
    folder = folder[[where[s] for s in stem]]
    for found in (back, table, folder):
        assert torch.equal(found.images, data.images) and torch.equal(found.usage, data.usage) and label(found)==label(data)
    assert back.names.tolist()==table.names.tolist()==data.names.tolist()

def test_a_part_that_was_drawn_anew_survives_the_old_words(faces, tmp_path):
    from fer_perturb.writers import write_kaggle
    words = FERData(faces.images[:30], faces.labels[:30]%2, [0]*10+[1]*10+[2]*10, [f'test/angry/{USAGES[i%3]}_{i}.jpg' for i in range(30)], ('angry', 'sad'))
    write_kaggle(words, tmp_path/'set')
    assert found_in(load_faces(tmp_path/'set'))==found_in(words)

@pytest.mark.parametrize('name', ['a/b', 'none', 'train', ' happy', '.x', '..'])
def test_a_class_that_would_not_come_back_is_not_written(name, faces, tmp_path):
    from fer_perturb.writers import write_kaggle
    with pytest.raises(ValueError, match='cannot be the name of a folder'): write_kaggle(FERData(faces.images[:2], [0,1], vocab=(name, 'sad')), tmp_path/'set')
    assert not list(tmp_path.iterdir())

def test_the_command_tells_and_writes(faces, tmp_path, capsys):
    from fer_perturb.cli import main
    files,expected = files_of(faces, '{p}/{c}/anna/{i}.png', THREE, {e: e for e in EMOTIONS})
    flat,twin = [(f'train/{e}/bob/flat.png', picture(np.full((48, 48), 7, np.uint8))) for e in EMOTIONS],('test/sad/bob/twin.png', files[0][1])
    source = as_zip(tmp_path/'set', [*files, *flat, twin, ('test/sad/bob/torn.png', files[0][1][:200]), ('train/sad/notes.doc', b'x')])
    for out in ('out.csv', 'out'):
        assert main(['data', str(source), '--to', str(tmp_path/out)])==0
        text = capsys.readouterr().out
        for said in ('71 images; 7 classes', 'parts by the folders: Training 28, PublicTest 21, PrivateTest 22', 'form: images in class folders', '48×48 71',
                     '7 flat images', 'twins across parts: 1 in Training, 0 in PublicTest, 1 in PrivateTest', 'unreadable files: 1', 'test/sad/bob/torn.png',
                     'left out 1 files that are no images, such as train/sad/notes.doc', f'written: {tmp_path/out}'): assert said in text, said
        back = found_in(load_faces(tmp_path/out))
        assert set(expected.items())-set(back.items())<={(faces.images[0].numpy().tobytes(), ('angry', 0))} and len(back)==len(expected)+1 # a twin is there once
    assert main(['data', str(source), '--to', str(tmp_path/'out')])==2 and 'exists' in capsys.readouterr().err
    assert main(['data', str(tmp_path/'nowhere')])==2 and 'nothing at' in capsys.readouterr().err

def test_damaged_files_end_in_a_sentence():
    from benchmarks.mutate import run
    counts,failures = run(360, seed=7)
    assert not failures and sum(n for (_,outcome),n in counts.items() if outcome=='sentence')>250

def test_a_folder_that_may_not_be_opened_is_said(faces, tmp_path, monkeypatch):
    files,expected = files_of(faces, '{p}/{c}/{i}.png', THREE, TWO)
    folder,scan = as_folder(tmp_path/'set', files+[('train/sad/more/x.png', files[0][1])]),os.scandir
    def closed(path):
        if str(path).endswith('more'): raise PermissionError(13, 'Permission denied', str(path))
        return scan(path)
    monkeypatch.setattr(os, 'scandir', closed)
    with pytest.warns(UserWarning, match='1 folders that may not be opened, such as train/sad/more'): assert found_in(load_faces(folder))==expected

@pytest.mark.parametrize('form', ['.csv', '.zip', '.tar', '.tar.gz', '.csv.zip', '.parquet', '.npz', '.png', '.jpg', '.votes.csv'])
def test_what_the_guided_fuzzer_begins_with_is_sound(form, tmp_path):
    if form=='.parquet': pytest.importorskip('pyarrow')
    from benchmarks.guided import FORMS, flaw, originals, small, trial
    assert form in FORMS
    one = trial(form, tmp_path/'place')
    whole = originals(form, tmp_path)
    for content in whole: one(content)
    for content in (b'', b'\0'*100, whole[0][:len(whole[0])//2]): one(content)
    faces = small()
    assert flaw(faces)==''
    faces.vocab = faces.vocab[:3]
    assert 'out of range' in flaw(faces)

def two_classes(faces, path, folders, n=6):
    "n pictures in each of these folders"
    for f,folder in enumerate(folders):
        for i in range(n):
            (path/folder).mkdir(parents=True, exist_ok=True)
            (path/folder/f'{f}_{i}.png').write_bytes(picture(faces.images[f*n+i]))
    return path

@pytest.mark.filterwarnings('ignore')
def test_a_source_that_changed_behind_a_link_or_a_table_is_read_again(faces, tmp_path):
    outside = two_classes(faces, tmp_path/'outside', ['happy', 'sad'])
    (tmp_path/'linked').mkdir()
    for c in ('happy', 'sad'): (tmp_path/'linked'/c).symlink_to(outside/c)
    (tmp_path/'labels.csv').write_text('image,label\n' + ''.join(f'outside/{c}/{f}_{i}.png,{c}\n' for f,c in enumerate(('happy', 'sad')) for i in range(6)))
    pd.read_csv(tmp_path/'labels.csv').to_parquet(tmp_path/'labels.parquet')
    for source in ('linked', 'labels.csv', 'labels.parquet'):
        (outside/'happy'/'0_0.png').write_bytes(picture(faces.images[0]))
        assert (load_faces(tmp_path/source).images==faces.images[0]).flatten(1).all(1).any()
        (outside/'happy'/'0_0.png').write_bytes(picture(faces.images[50]))
        assert (load_faces(tmp_path/source).images==faces.images[50]).flatten(1).all(1).any(), source

@pytest.mark.filterwarnings('ignore')
def test_class_names_in_a_file_beat_those_of_the_caller(faces, tmp_path):
    rows = [dict(i=i, emotion=i%7) for i in range(42)]
    hub_file(tmp_path/'train.parquet', faces, rows, tuple(sorted(EMOTIONS)))
    data = load_faces(tmp_path/'train.parquet', vocab=EMOTIONS)
    assert data.vocab==EMOTIONS and {k: c for k,(c,_) in found_in(data).items()}=={faces.images[i].numpy().tobytes(): EMOTIONS[i%7] for i in range(42)}

@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('form', ['utf-8', 'cyrillic', 'cp437'])
def test_names_in_a_zip_that_does_not_say_how_they_are_written(form, faces, tmp_path):
    word = {'utf-8': 'fröhlich', 'cyrillic': 'радость', 'cp437': 'fröhlich'}[form]
    plain = {'cp437': word.encode('cp437', 'replace')}.get(form, word.encode())
    stand_in = 'x'*len(plain)
    source = as_zip(tmp_path/'set', [(f'{c}/{i}.png', picture(faces.images[i+j])) for j,c in enumerate((stand_in, 'sad')) for i in range(4)])
    source.write_bytes(source.read_bytes().replace(stand_in.encode(), plain))
    assert set(load_faces(source).vocab)=={word, 'sad'}

@pytest.mark.filterwarnings('ignore')
def test_letters_that_are_written_in_two_ways_are_one_class(faces, tmp_path):
    assert load_faces(two_classes(faces, tmp_path/'set', ['train/m\u00fcde', 'train/froh', 'test/mu\u0308de', 'test/froh'])).vocab==('froh', 'müde')

def frame_of(faces, n=18, **columns):
    return pd.DataFrame(dict(image=[picture(faces.images[i]) for i in range(n)], **{k: [f(i) for i in range(n)] for k,f in columns.items()}))

@pytest.mark.filterwarnings('ignore')
def test_columns_of_parquet_files_keep_their_names(faces, tmp_path):
    alphabet = sorted(EMOTIONS)
    def read(**columns):
        frame_of(faces, **columns).to_parquet(tmp_path/'set.parquet')
        return load_faces(tmp_path/'set.parquet', cache=False)
    def name(i): return EMOTIONS[i%2*3]
    parts = dict(split=lambda i: ('train', 'valid', 'test')[i//2%3])
    assert found_in(read(label=lambda i: alphabet.index(name(i)), label_text=name, **parts))==expected_rows(faces)
    assert found_in(read(emotion=lambda i: i%2*3, label=lambda i: f'note {i}', **parts))==expected_rows(faces)
    assert found_in(read(emotion=lambda i: i%2*3, Usage=lambda i: USAGES[i//2%3], split=lambda i: 'fold'))==expected_rows(faces)
    assert len(read(emotion=lambda i: i%2*3, set=lambda i: 'ab'[i%2]))==18
    two_parts = read(emotion=lambda i: i%2*3, Usage=lambda i: USAGES[i//2%2])
    assert not len(two_parts.part('PrivateTest'))
    table = pd.DataFrame({'emotion': [i%2*3 for i in range(18)], ' Usage': [USAGES[i//2%2] for i in range(18)],
                          ' pixels': [' '.join(map(str, faces.images[i].flatten().tolist())) for i in range(18)]})
    assert not len(load_faces(table).part('PrivateTest'))

@pytest.mark.filterwarnings('ignore')
def test_columns_of_two_files_may_be_called_differently(faces, tmp_path):
    for part,names in dict(train=dict(image='image', label='label'), test=dict(image='img', label='emotion')).items():
        frame = pd.DataFrame({names['image']: [picture(faces.images[i]) for i in range(6)], names['label']: [i%2 for i in range(6)]})
        (tmp_path/'set').mkdir(exist_ok=True)
        frame.to_parquet(tmp_path/'set'/f'{part}.parquet')
    data = load_faces(tmp_path/'set', vocab=('dog', 'cat'))
    assert len(data)==12 and data.part('PrivateTest').labels.tolist()==[0, 1]*3

def test_a_table_with_columns_that_are_called_by_numbers(faces):
    from fer_perturb.readers import from_frame
    frame = pd.DataFrame({0: list(faces.images[:18].numpy()), 5: [EMOTIONS[i%2*3] for i in range(18)], 7: [('train', 'valid', 'test')[i//2%3] for i in range(18)]})
    assert found_in(from_frame(frame, image=0, label=5, split=7))==expected_rows(faces)
    with pytest.raises(ValueError, match='several columns called 5'): from_frame(frame.rename(columns={7: 5}), image=0, label=5)

def paths_csv(path, template, back=False):
    rows = [template.format(p=p, i=i) + f',{EMOTIONS[i%2*3]}' for j,p in enumerate(('train', 'valid', 'test')) for i in range(6*j, 6*j+6)]
    path.write_text('image,label\n' + '\n'.join(r.replace('/', '\\') if back else r for r in rows))

def placed(faces, path, template):
    for j,p in enumerate(('train', 'valid', 'test')):
        for i in range(6*j, 6*j+6):
            file = path/template.format(p=p, i=i)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(picture(faces.images[i]))

@pytest.mark.parametrize('back', [False, True])
@pytest.mark.parametrize('template', ['{p}/img{i}.png', 'faces/test set/{p}/{i}.png', '{p}_{i}.png'])
def test_paths_in_a_table_say_the_parts(template, back, faces, tmp_path):
    expected = {faces.images[i].numpy().tobytes(): (EMOTIONS[i%2*3], i//6) for i in range(18)}
    placed(faces, tmp_path/'set', template)
    paths_csv(tmp_path/'set'/'labels.csv', template, back)
    assert found_in(load_faces(tmp_path/'set'/'labels.csv'))==expected
    assert found_in(load_faces(tmp_path/'set'))==expected

@pytest.mark.filterwarnings('ignore')
def test_paths_that_name_one_part_only_leave_the_others_to_be_drawn(faces, tmp_path):
    placed(faces, tmp_path/'test'/'set', 'test_{i}.png')
    (tmp_path/'test'/'set'/'labels.csv').write_text('image,label\n' + '\n'.join(f'test_{i}.png,{EMOTIONS[i%2*3]}' for i in range(18)))
    assert load_faces(tmp_path/'test'/'set'/'labels.csv').usage.bincount(minlength=3).tolist()==[14, 2, 2]

@pytest.mark.filterwarnings('ignore')
def test_a_parquet_file_in_a_folder_names_images_from_there(faces, tmp_path):
    placed(faces, tmp_path/'set'/'images', '{p}/{i}.png')
    frame = pd.DataFrame(dict(image=[f'images/{p}/{i}.png' for j,p in enumerate(('train', 'valid', 'test')) for i in range(6*j, 6*j+6)], label=[EMOTIONS[i%2*3] for i in range(18)]))
    frame.to_parquet(tmp_path/'set'/'meta.parquet')
    assert found_in(load_faces(tmp_path/'set'))==found_in(load_faces(tmp_path/'set'/'meta.parquet'))

@pytest.mark.filterwarnings('ignore')
def test_folders_that_are_numbers_get_the_names_they_are_given(faces, tmp_path):
    source = two_classes(faces, tmp_path/'set', ['0', '1'])
    expected = {faces.images[i].numpy().tobytes(): ('dog', 'cat')[i//6] for i in range(12)}
    assert {k: c for k,(c,_) in found_in(load_faces(source, vocab=('dog', 'cat'))).items()}==expected
    assert load_faces(source).vocab==('0', '1')
    source = two_classes(faces, tmp_path/'one', map(str, range(1, 8)))
    with pytest.raises(ValueError, match=r'7 classes are numbered from 0 \(angry\) to 6 \(neutral\)'): load_faces(source, vocab=EMOTIONS)

@pytest.mark.filterwarnings('ignore')
def test_a_table_beside_folders_of_emotions_is_named(faces, tmp_path, capsys):
    source = two_classes(faces, tmp_path/'set', ['happy', 'sad'])
    (source/'labels.csv').write_text('image,label\nhappy/0_0.png,sad\n')
    load_faces(source)
    assert 'read from the folders, and not from labels.csv' in capsys.readouterr().out

def test_columns_of_pixels_in_any_order(faces, tmp_path):
    rows = [[r['emotion'], r['split'], *faces.images[r['i']].flatten().tolist()] for r in table_rows(faces)]
    frame = pd.DataFrame(rows, columns=['label', 'split', *(f'pixel{i}' for i in range(48*48))])
    frame[sorted(frame)].to_csv(tmp_path/'sorted.csv', index=False)
    assert found_in(load_faces(tmp_path/'sorted.csv'))==expected_rows(faces)

@pytest.mark.filterwarnings('ignore')
def test_what_a_mac_and_tar_put_into_archives(faces, tmp_path):
    files = [(f'{c}/{i}.png', picture(faces.images[i+4*j])) for j,c in enumerate(('happy', 'sad')) for i in range(4)]
    assert len(load_faces(as_zip(tmp_path/'mac', [*files, ('happy/Icon\r', b'')])))==8
    source = as_tar(tmp_path/'hard', files)
    with tarfile.open(source, 'a') as tar:
        link = tarfile.TarInfo('sad/again.png')
        link.type,link.linkname = tarfile.LNKTYPE,'sad/0.png'
        tar.addfile(link)
    assert len(load_faces(source))==9

def test_too_few_images_to_draw_parts_are_called_that(faces, tmp_path):
    with pytest.warns(UserWarning, match='too few images or groups to draw PublicTest and PrivateTest'):
        assert len(load_faces(two_classes(faces, tmp_path/'set', ['happy', 'sad'], 2)))==4

def test_a_folder_that_is_not_there(tmp_path):
    from fer_perturb.readers import from_folder
    with pytest.raises(FileNotFoundError, match='no folder at'): from_folder(tmp_path/'missing')

@pytest.mark.parametrize('source', [None, 5, ['a.zip']])
def test_what_is_no_source(source):
    with pytest.raises(ValueError, match='give a path, a DataFrame'): load_faces(source)

def test_a_fit_that_does_not_exist(tmp_path):
    with pytest.raises(ValueError, match="fit is 'stretch': choose one of"): load_faces(tmp_path/'any.csv', fit='stretch')
