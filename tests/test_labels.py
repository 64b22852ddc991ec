"Votes, labels that are drawn from them, and remedies for rare classes"
import pandas as pd
import pytest
import torch
from fastai.vision.all import Callback, CancelFitException, CrossEntropyLossFlat, DataLoaders, Learner
from torch import nn

from fer_perturb.attention import add_attention
from fer_perturb.backbones import create_backbone
from fer_perturb.data import USAGES, FERData
from fer_perturb.labels import FERPLUS, VOTES, DrawLabels, balance_classes, class_weights, ferplus
from fer_perturb.learner import perturb_learner
from fer_perturb.loaders import face_block


def write_votes(path, rows, usage):
    frame = pd.DataFrame([dict.fromkeys(VOTES, 0) | r for r in rows])
    frame.insert(0, 'Usage', usage)
    frame.insert(1, 'Image name', [r.get('name', f'fer{i:07}.png') for i,r in enumerate(rows)])
    frame.drop(columns=[c for c in frame if c=='name']).to_csv(path, index=False)
    return path

@pytest.fixture
def voted(faces, tmp_path):
    rows = [{VOTES[i%8]: 6, VOTES[(i+1)%8]: 4} for i in range(len(faces))]
    return ferplus(faces, write_votes(tmp_path/'fer2013new.csv', rows, [USAGES[u] for u in faces.usage]))

def test_ferplus_takes_majorities_and_counts_the_rest(faces, tmp_path, capsys):
    rows = [dict(anger=10), dict(contempt=6, neutral=4), dict(fear=5, sadness=5), dict(unknown=7, fear=3), dict(NF=9, fear=1), dict(happiness=10, name=None),
            dict(happiness=4, fear=3, sadness=3)]
    path = write_votes(tmp_path/'v.csv', rows, [USAGES[u] for u in faces[:7].usage])
    data = ferplus(faces[:7], path)
    assert [f.label for f in data]==['angry', 'contempt'] and data.vocab==FERPLUS
    assert '5 of 7 images left out: 2 no face, 1 unknown, 2 without a majority' in capsys.readouterr().out
    assert torch.allclose(data.column('votes').sum(1), torch.ones(2)) and data.column('votes')[1, 6]==.4
    wrong = FERData(faces.images[:7], faces.labels[:7], [2]*7)
    with pytest.raises(ValueError, match='not in the order'): ferplus(wrong, path)
    with pytest.raises(ValueError, match='belongs to all rows'): ferplus(faces, path)
    with pytest.raises(FileNotFoundError, match='FERPlus'): ferplus(faces, tmp_path/'none.csv')
    with pytest.raises(ValueError, match='no rule is called 0.5'): ferplus(faces, path, .5)

# votes; then what the authors' program answers for each rule: None for an image that is left out, else its label and the emotions that count
by_rule = [
    (dict(happiness=10),                                  'happy', 'happy happy', 'happy happy'),
    (dict(happiness=9, fear=1),                           'happy', 'happy happy', 'happy happy'), # a single vote is a slip
    (dict(happiness=6, sadness=4),                        'happy', 'happy happy,sad', 'happy happy,sad'),
    (dict(happiness=6, sadness=3, fear=1),                'happy', 'happy happy,sad', 'happy happy,sad'),
    (dict(happiness=5, sadness=5),                        None,    'happy happy,sad', 'happy happy,sad'), # a tie: the first in the file's order
    (dict(anger=5, neutral=5),                            None,    'neutral angry,neutral', 'neutral angry,neutral'),
    (dict(happiness=5, sadness=3, fear=2),                None,    'happy happy,sad', 'happy happy,sad'),
    (dict(happiness=4, sadness=3, fear=3),                None,    'happy happy,sad,fear', 'happy happy,sad,fear'),
    (dict(happiness=5, sadness=4, fear=1),                'happy', 'happy happy,sad', 'happy happy,sad'), # five of the nine that are left
    (dict(happiness=4, sadness=2, fear=2, anger=2),       None,    None, None), # a tie makes four; four of ten are too few
    (dict(happiness=5, sadness=2, fear=2, anger=1),       'happy', 'happy happy,sad,fear', 'happy happy'),
    (dict(happiness=3, sadness=3, fear=2, anger=2),       None,    None, 'happy happy,sad'),
    (dict(happiness=2, sadness=2, fear=2, anger=2, disgust=2), None, None, None),
    (dict(happiness=6, unknown=4),                        'happy', 'happy happy', 'happy happy'), # unknown ends the list
    (dict(happiness=5, unknown=5),                        None,    None, 'happy happy'),
    (dict(happiness=4, unknown=6),                        None,    None, None),
    (dict(happiness=4, unknown=3, sadness=3),             None,    'happy happy,sad', 'happy happy,sad'),
    (dict(happiness=5, NF=3, sadness=2),                  None,    None, 'happy happy'),
    (dict(unknown=10), None, None, None), (dict(NF=10), None, None, None), (dict(unknown=5, NF=5), None, None, None),
    (dict.fromkeys(VOTES, 1), None, None, None), # slips only
    (dict(contempt=6, disgust=2, fear=2),                 'contempt', 'contempt contempt,disgust,fear', 'contempt contempt'),
    (dict(surprise=3, fear=1),                            'surprise', 'surprise surprise', 'surprise surprise'), # fewer than ten people
    (dict(happiness=10, name=None), None, None, None)]

@pytest.mark.parametrize('rule', ['majority', 'probability', 'multi_target'])
def test_ferplus_rule_by_rule(faces, tmp_path, rule):
    n,column = len(by_rule),['majority', 'probability', 'multi_target'].index(rule)+1
    data = ferplus(faces[:n], write_votes(tmp_path/'v.csv', [r[0] for r in by_rule], [USAGES[u] for u in faces[:n].usage]), rule)
    names = [f.name for f in data]
    found = {i: (data[names.index(str(i))].label, data.column('votes')[names.index(str(i))]) for i in range(n) if str(i) in names}
    for i,row in enumerate(by_rule):
        if row[column] is None: assert i not in found, row
        else:
            label,_,counting = row[column].partition(' ')
            assert found[i][0]==label, row
            votes = found[i][1]
            if rule!='majority': assert {FERPLUS[j] for j in votes.nonzero()[:, 0]}==set(counting.split(',')), row
            assert votes.sum()==pytest.approx(1)

def test_shares_are_those_of_the_votes_that_count(faces, tmp_path):
    path = write_votes(tmp_path/'v.csv', [dict(sadness=5, fear=2, happiness=2, anger=1)], [USAGES[faces.usage[0]]])
    shares = {rule: dict(zip(FERPLUS, ferplus(faces[:1], path, rule).column('votes')[0].tolist())) for rule in ('majority', 'probability', 'multi_target')}
    assert shares['majority']==pytest.approx(dict.fromkeys(FERPLUS, 0) | dict(sad=.5, fear=.2, happy=.2, angry=.1))
    assert shares['probability']==pytest.approx(dict.fromkeys(FERPLUS, 0) | dict(sad=5/9, fear=2/9, happy=2/9))
    assert shares['multi_target']==pytest.approx(dict.fromkeys(FERPLUS, 0) | dict(sad=1))

@pytest.mark.parametrize('bad, sentence', [
    (dict(fear=None), "row 2: fear is 'nan'"), (dict(NF='x'), "row 2: NF is 'x'"), (dict(unknown=float('inf')), "row 2: unknown is 'inf'"),
    (dict(anger=-1, fear=11), "row 2: anger is '-1'"), (dict(), 'row 2: nobody has voted'), (dict(contempt=''), "row 2: contempt is 'nan'")])
def test_votes_that_are_none_are_refused_by_row(faces, tmp_path, bad, sentence):
    path = write_votes(tmp_path/'v.csv', [dict(anger=10), dict(fear=10), bad, dict(fear=10)], [USAGES[u] for u in faces[:4].usage])
    for rule in ('majority', 'probability', 'multi_target'):
        with pytest.raises(ValueError, match=sentence): ferplus(faces[:4], path, rule)

@pytest.mark.parametrize('content', [b'', b'\xff\xfe\x00', b'a,b\n"1', b'\0'*99])
def test_a_file_that_is_no_table_is_refused(faces, tmp_path, content):
    (tmp_path/'v.csv').write_bytes(content)
    with pytest.raises(ValueError, match='v.csv'): ferplus(faces, tmp_path/'v.csv')

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

def tables_of(learn, voted): return dict(user=voted, train=learn.dls.train.data, valid=learn.dls.valid.data)

class Break(Callback):
    "Ctrl-C, in the second epoch"
    def __init__(self, event): self.event,self.run_valid = event,True
    def __call__(self, event_name):
        if event_name==self.event and self.epoch==1: raise KeyboardInterrupt

@pytest.mark.parametrize('event', ['before_epoch', 'before_train', 'after_batch', 'after_train', 'before_validate', 'after_epoch'])
@pytest.mark.parametrize('p_model', [False, True])
def test_no_label_stays_drawn(voted, event, p_model):
    "After a complete training, and after Ctrl-C anywhere: in no table, and not in the next epoch"
    if p_model:
        dls = face_block(voted.vocab).dataloaders(voted[::4], bs=16)
        learn = perturb_learner(dls, small_cnn(8), attention=add_attention(create_backbone('slim_resnet18', n_out=8)), cbs=DrawLabels())
    else: learn = tiny_learner(voted, DrawLabels())
    before = {name: t.labels.clone() for name,t in tables_of(learn, voted).items()}
    def same(): return all(torch.equal(t.labels, before[name]) for name,t in tables_of(learn, voted).items())
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-4)
        assert same()
        with pytest.raises(KeyboardInterrupt): learn.fit(2, 1e-4, cbs=Break(event))
    assert same()
    train = learn.dls.train.new(shuffle=False, drop_last=False)
    assert torch.equal(torch.cat([b[-1] for b in train]).as_subclass(torch.Tensor), before['train'])

def small_cnn(n): return nn.Sequential(nn.Conv2d(1, 8, 3, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, n))

def test_a_draw_counts_as_the_votes_do(voted):
    "With one vote for each image, every draw is that vote, whatever the label says"
    told = voted.with_columns(votes=torch.eye(8)[(voted.labels+3)%8])
    spy = Spy()
    learn = tiny_learner(told, [DrawLabels(), spy])
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-4)
    assert torch.equal(torch.cat(spy.seen[True]).as_subclass(torch.Tensor), (told.part('Training').labels+3)%8)
    assert torch.equal(torch.cat(spy.seen[False]).as_subclass(torch.Tensor), told.part('PublicTest').labels)

def test_votes_to_draw_from_are_looked_at(voted):
    for votes,sentence in ((torch.ones(420, 3), 'one for each of 8 classes'), (torch.ones(420, 8)*(torch.arange(420)!=7)[:, None], 'training image 7 has no votes')):
        learn = tiny_learner(voted.with_columns(votes=votes), DrawLabels())
        with pytest.raises(ValueError, match=sentence), learn.no_bar(), learn.no_logging(): learn.fit(1)

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
