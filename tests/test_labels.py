"Votes, labels that are drawn from them, and remedies for rare classes"
import pandas as pd
import pytest
import torch
from fastai.vision.all import Callback, CancelFitException, CrossEntropyLossFlat, DataLoaders, Learner
from torch import nn

from fer_perturb.data import USAGES, FERData
from fer_perturb.labels import FERPLUS, DrawLabels, balance_classes, class_weights, ferplus
from fer_perturb.loaders import face_block


votes_of = ['neutral', 'happiness', 'surprise', 'sadness', 'anger', 'disgust', 'fear', 'contempt', 'unknown', 'NF']

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

def test_a_training_that_breaks_off_leaves_the_users_labels_and_the_next_one_starts_from_the_majority(voted):
    before = voted.labels.clone()
    class Break(Callback):
        def after_batch(self): raise KeyboardInterrupt
    learn = tiny_learner(voted, DrawLabels())
    with pytest.raises(KeyboardInterrupt), learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-4, cbs=Break())
    assert not torch.equal(learn.dls.train.data.labels, voted.part('Training').labels)
    assert torch.equal(voted.labels, before)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-4)
    assert torch.equal(learn.dls.train.data.labels, voted.part('Training').labels) and torch.equal(voted.labels, before)

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

def test_loaders_of_other_data_are_refused():
    other = DataLoaders.from_dsets([(torch.zeros(1,48,48), 0)]*4, [(torch.zeros(1,48,48), 0)], bs=2)
    with pytest.raises(ValueError, match='not made from a FERData'): balance_classes(other)
    learn = Learner(other, nn.Sequential(nn.Flatten(), nn.Linear(48*48, 7)), CrossEntropyLossFlat(), cbs=DrawLabels())
    with pytest.raises(ValueError, match='no votes'), learn.no_bar(), learn.no_logging(): learn.fit(1)
