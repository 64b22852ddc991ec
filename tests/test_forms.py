"FERPlus, parquet, tables of one's own; remedies for rare classes; the table of what a mask costs; saliency of any network"
import io
import json

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import Callback, CancelFitException, CrossEntropyLossFlat, Learner
from PIL import Image
from torch import nn

from fer_perturb.data import EMOTIONS, USAGES, FERData
from fer_perturb.evaluate import occlusion_table
from fer_perturb.interpret import input_saliency, saliency_figure
from fer_perturb.labels import FERPLUS, DrawLabels, balance_classes, class_weights, ferplus
from fer_perturb.loaders import face_block
from fer_perturb.readers import from_frame, from_parquet, known_split, load_faces

votes_of = ['neutral', 'happiness', 'surprise', 'sadness', 'anger', 'disgust', 'fear', 'contempt', 'unknown', 'NF']

def png(image):
    file = io.BytesIO()
    Image.fromarray(image.numpy()).save(file, 'PNG')
    return file.getvalue()

def write_parquet(path, faces, names, metadata=True):
    pa,pq = pytest.importorskip('pyarrow'),pytest.importorskip('pyarrow.parquet')
    table = pa.table(dict(image=[{'bytes': png(f.image), 'path': None} for f in faces], label=[names.index(f.label) for f in faces]))
    if metadata: table = table.replace_schema_metadata({'huggingface': json.dumps({'info': {'features': {'label': {'_type': 'ClassLabel', 'names': names}}}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)

def write_votes(path, rows, usage):
    frame = pd.DataFrame([dict.fromkeys(votes_of, 0) | r for r in rows])
    frame.insert(0, 'Usage', usage)
    frame.insert(1, 'Image name', [r.get('name', f'fer{i:07}.png') for i,r in enumerate(rows)])
    frame.drop(columns=[c for c in frame if c=='name']).to_csv(path, index=False)
    return path

@pytest.fixture
def voted(faces, tmp_path):
    rows = [{votes_of[i%8]: 6, votes_of[(i+1)%8]: 4} for i in range(len(faces))]
    return ferplus(faces, write_votes(tmp_path/'fer2013new.csv', rows, [USAGES[u] for u in faces.usage]))

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
    with pytest.raises(ValueError, match="row 0 has split 'x'"): from_frame(frame.assign(part='x'), 'file', 'mood', 'part', folder=tmp_path)
    with pytest.raises(ValueError, match='is a float'): from_frame(kinds.assign(image=1.5))
    with pytest.raises(FileNotFoundError): from_frame(frame.assign(file='gone.png'), 'file', 'mood', folder=tmp_path)

def test_ferplus_takes_majorities_and_counts_the_rest(faces, tmp_path, capsys):
    rows = [dict(anger=10), dict(contempt=6, neutral=4), dict(fear=5, sadness=5), dict(unknown=7, fear=3), dict(NF=9, fear=1), dict(happiness=10, name=None),
            dict(happiness=4, fear=3, sadness=3)]
    path = write_votes(tmp_path/'v.csv', rows, [USAGES[u] for u in faces[:7].usage])
    data = ferplus(faces[:7], path)
    assert [f.label for f in data]==['angry', 'contempt'] and data.vocab==FERPLUS
    assert '5 of 7 images left out: 2 no face, 1 unknown, 2 without a majority' in capsys.readouterr().out
    assert torch.allclose(data.column('votes').sum(1), torch.ones(2)) and data.column('votes')[1,6]==.4
    assert [f.label for f in ferplus(faces[:7], path, min_share=.35)]==['angry', 'contempt', 'happy']
    wrong = FERData(faces.images[:7], faces.labels[:7], [2]*7)
    with pytest.raises(ValueError, match='not in the order'): ferplus(wrong, path)
    with pytest.raises(ValueError, match='belongs to all rows'): ferplus(faces, path)
    with pytest.raises(FileNotFoundError, match='FERPlus'): ferplus(faces, tmp_path/'none.csv')
    with pytest.raises(ValueError, match='min_share is 5'): ferplus(faces, path, 5)

class Spy(Callback):
    "Collects the labels of training and validation batches"
    def before_fit(self): self.seen = {True: [], False: []}
    def before_batch(self): self.seen[self.training].append(self.y.clone())

def tiny_learner(data, cbs=None, **kwargs):
    dls = face_block(data.vocab).dataloaders(data, bs=64, shuffle=False, drop_last=False)
    return Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(48*48, len(data.vocab))), cbs=cbs, **({'loss_func': CrossEntropyLossFlat()} | kwargs))

def test_labels_are_drawn_from_votes_in_training_only_and_restored(voted):
    before = voted.labels.clone()
    spy = Spy()
    learn = tiny_learner(voted, [DrawLabels(), spy])
    with learn.no_bar(), learn.no_logging(): learn.fit(10, 1e-4)
    assert torch.equal(voted.labels, before)
    train = voted.part('Training')
    drawn = torch.cat(spy.seen[True])
    assert len(drawn)==10*len(train)
    assert abs((drawn==train.labels.repeat(10)).float().mean()-.6)<.05
    assert torch.equal(torch.cat(spy.seen[False]), voted.part('PublicTest').labels.repeat(10))
    class Stop(Callback):
        def after_batch(self): raise CancelFitException
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-4, cbs=Stop())
    assert torch.equal(voted.labels, before)

def test_drawing_needs_votes(faces):
    learn = tiny_learner(faces, DrawLabels())
    with pytest.raises(ValueError, match='no votes'), learn.no_bar(), learn.no_logging(): learn.fit(1)

def test_rare_classes_weigh_and_come_as_much_as_others(faces):
    rare = faces[(faces.labels!=1) | (torch.arange(420)<70)]
    train = rare.part('Training')
    counts = torch.bincount(train.labels, minlength=7).float()
    weights = class_weights(rare)
    assert torch.allclose(weights*counts, (weights*counts)[0].expand(7)) and torch.allclose(class_weights(rare, 0.), torch.ones(7))
    assert torch.allclose((weights*counts).sum(), counts.sum())
    spy = Spy()
    dls = balance_classes(face_block().dataloaders(rare, bs=16))
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(48*48, 7)), loss_func=CrossEntropyLossFlat(), cbs=spy)
    with learn.no_bar(), learn.no_logging(): learn.fit(20, 1e-4)
    shown = torch.bincount(torch.cat(spy.seen[True]), minlength=7).float()
    assert shown.max()/shown.min()<1.5<counts.max()/counts.min()
    assert torch.equal(torch.cat(spy.seen[False])[:len(rare.part('PublicTest'))], rare.part('PublicTest').labels)
    with pytest.raises(ValueError, match='no training image of disgust'): class_weights(faces[faces.labels!=1])

def test_table_of_what_a_mask_costs():
    labels = torch.arange(60)%3
    right = torch.nn.functional.one_hot(labels, 4).float()
    masked = right.clone()
    masked[:30][labels[:30]==1] = torch.tensor([1., 0, 0, 0])
    table = occlusion_table({'m': right}, {'m': masked}, labels, ('a', 'b', 'c', 'd'))
    assert table.loc['m', 'a']=='+0.0 (+0 to +0)' and table.loc['m', 'b'].startswith('-50.0 (') and table.loc['m', 'd']=='–'
    low,high = (float(v) for v in table.loc['m', 'b'].split('(')[1].rstrip(')').split(' to '))
    assert low<-60 and -40<high<0
    assert table.loc['m', 'all'].startswith('-16.7')
    with pytest.raises(ValueError, match='give both for each model'): occlusion_table({'m': right}, {'n': masked}, labels, ('a', 'b', 'c', 'd'))

class Corner(nn.Module):
    "Scores the lower right corner"
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
    def forward(self, x): return torch.stack([self.scale*x[...,36:,36:].square().mean((1,2,3)), 0*x.mean((1,2,3))], 1)

@pytest.mark.parametrize('kind', ['gradient', 'smooth', 'integrated', 'occlusion'])
def test_saliency_finds_what_the_model_sees(faces, kind):
    pytest.importorskip('captum')
    model = Corner().train()
    maps = input_saliency(model, faces.images[:5], kind, smooth=1, batch_size=2)
    assert maps.shape==(5,48,48) and maps.amin()>=0 and torch.allclose(maps.amax((1,2)), torch.ones(5))
    assert maps[:,38:,38:].mean()>20*maps[:,:30,:30].mean()
    assert model.training and model.scale.grad is None

def test_saliency_of_a_chosen_class_and_its_figure(faces):
    pytest.importorskip('captum')
    model = nn.Sequential(nn.Flatten(), nn.Linear(48*48, 3))
    a,b = (input_saliency(model, faces.images[:4], target=torch.full((4,), t)) for t in (0, 1))
    assert not torch.equal(a, b)
    figure = saliency_figure({'one': model, 'two': model}, {'plain': faces.images[:4], 'again': faces.images[:4]}, ['x']*4)
    assert len(figure.axes)==4*6
