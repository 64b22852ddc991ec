"A training that is stopped after every epoch ends as an undisturbed one, whatever its optimizer, recipe and callbacks"
import pytest
import torch
from fastai.vision.all import Adam, Callback, set_seed
from torch import nn

from fer_perturb import checkpoint
from fer_perturb.augment import FaceAugment
from fer_perturb.checkpoint import Checkpoint
from fer_perturb.learner import MeanTeacher, adamw, face_learner, perturb_learner, sgd
from fer_perturb.loaders import face_block


class Noise(nn.Module):
    "Stands for attention"
    def saliency_maps(self, images, *args): return (images[:, 0].float()*(1 if images.dtype==torch.uint8 else 255)).byte()

def model(): return nn.Sequential(nn.Conv2d(1, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(.2), nn.Linear(64, 7))

def learner(faces, kind):
    set_seed(1)
    dls = face_block(batch_tfms=[FaceAugment()]).dataloaders(faces[:105], bs=16, device='cpu')
    if kind=='plain': return face_learner(dls, model(), opt_func=Adam)
    if kind=='teacher': return perturb_learner(dls, 'test_resnet', 'self', cbs=MeanTeacher(.8), opt_func=Adam)
    return perturb_learner(dls, model(), Noise(), perturb='foreign', every=2 if kind=='seldom' else 1, refine=1, opt_func=Adam)

recipes = dict(sgd=lambda l, cbs: l.fit_quick(10, opt_func=sgd, cbs=cbs), adamw=lambda l, cbs: l.fit_quick(3, opt_func=adamw, cbs=cbs),
               paper=lambda l, cbs: l.fit_paper(8, .3, cbs=cbs), fastais=lambda l, cbs: l.fit_one_cycle(3, .01, cbs=cbs))

def train(faces, path, recipe='adamw', kind='plain', stop=None):
    "Until it is finished, in a new learner after each stop"
    for attempt in range(20):
        learn,keep = learner(faces, kind),Checkpoint(path, stop=stop)
        with learn.no_bar(), learn.no_logging(): recipes[recipe](learn, [keep])
        if not keep.stopped: return attempt,learn
    raise AssertionError('never finished')

def outcome(learn):
    return [t.clone() for t in learn.model.state_dict().values()],[list(v) for v in learn.recorder.values],[float(l) for l in learn.recorder.losses],learn.recorder.lrs

def equal(a, b): return all(torch.equal(x, y) for x,y in zip(a[0], b[0])) and a[1:]==b[1:]

@pytest.mark.parametrize('recipe, kind', [('sgd', 'plain'), ('adamw', 'plain'), ('paper', 'plain'), ('fastais', 'plain'), ('sgd', 'clusters'), ('fastais', 'seldom'), ('adamw', 'teacher')])
def test_stopped_after_every_epoch(faces, tmp_path, recipe, kind):
    _,whole = train(faces, tmp_path/'whole.pt', recipe, kind)
    stops,parts = train(faces, tmp_path/'parts.pt', recipe, kind, stop=lambda: True)
    assert stops==len(whole.recorder.values)-1 and equal(outcome(whole), outcome(parts))

@pytest.mark.parametrize('part', ['opt', 'random', 'callbacks', 'model'])
def test_every_part_of_the_state_is_needed(faces, tmp_path, part, monkeypatch):
    "Without any of them the rest of the training is another one"
    _,whole = train(faces, tmp_path/'whole.pt', 'sgd', 'clusters')
    real = checkpoint.set_training_state
    def forgetful(learn, state):
        fresh = checkpoint.training_state(learn)
        real(learn, state | {part: {} if part=='callbacks' else fresh[part]})
    monkeypatch.setattr(checkpoint, 'set_training_state', forgetful)
    assert not equal(outcome(whole), outcome(train(faces, tmp_path/'parts.pt', 'sgd', 'clusters', stop=lambda: True)[1]))

def test_a_finished_training_is_not_repeated(faces, tmp_path):
    _,whole = train(faces, tmp_path/'c.pt')
    batches = []
    class Count(Callback):
        def before_batch(self): batches.append(1)
    learn = learner(faces, 'plain')
    with learn.no_bar(), learn.no_logging(): learn.fit_quick(3, opt_func=adamw, cbs=[Checkpoint(tmp_path/'c.pt'), Count()])
    assert not batches and equal(outcome(whole), outcome(learn))

def test_only_one_file_is_left(faces, tmp_path):
    train(faces, tmp_path/'c.pt', stop=lambda: True)
    assert [p.name for p in tmp_path.iterdir() if p.name!='cache']==['c.pt']


def test_a_training_goes_on_where_somebody_watches_its_bars(faces, tmp_path, capsys):
    first,second = learner(faces, 'plain'),learner(faces, 'plain')
    with first.no_bar(), first.no_logging(): first.fit_quick(3, opt_func=adamw, cbs=[Checkpoint(tmp_path/'c.pt', stop=lambda: True)])
    checkpoint = Checkpoint(tmp_path/'c.pt')
    second.fit_quick(3, opt_func=adamw, cbs=[checkpoint])
    assert checkpoint.start==1 and len(second.recorder.values)==3 and '3/3' in capsys.readouterr().out
