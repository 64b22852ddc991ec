"fastai's habits on every learner of ours; the table is printed, and it is the one on the page of habits"
import io
import importlib.util
import pickle
import traceback
import warnings
from contextlib import redirect_stdout
from copy import deepcopy
from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastai.callback.all import (ActivationStats, BnFreeze, CSVLogger, CutMix, EarlyStoppingCallback, FetchPredsCallback, GradientAccumulation,
                                 GradientClip, MixUp, ParamScheduler, ReduceLROnPlateau, SaveModelCallback, SchedLin, ShortEpochCallback,
                                 ShowGraphCallback, TerminateOnNaNCallback)
from fastai.vision.all import (Callback, ClassificationInterpretation, FocalLossFlat, LabelSmoothingCrossEntropyFlat, Normalize, Path, error_rate,
                               load_learner, pd, ranger)
from torch import nn

from fer_perturb.augment import EraseRandom, FaceAugment
from fer_perturb.ensemble import ensemble_learner
from fer_perturb.labels import balance_classes
from fer_perturb.learner import SmallFirst, attention_learner, face_learner, perturb_learner
from fer_perturb.loaders import face_block
from fer_perturb.toyfaces import toy_faces

not_applicable,not_tried = 'has none','not tried' # why a habit is skipped: nothing to try, or a package is missing

class Tiny(nn.Module):
    "Two stages and a head"
    def __init__(self, n_in=1):
        super().__init__()
        def stage(a, b): return nn.Sequential(nn.Conv2d(a, b, 3, stride=4, padding=1), nn.BatchNorm2d(b), nn.ReLU())
        self.one,self.two,self.head = stage(n_in, 4),stage(4, 8),nn.Linear(8, 7)
    def forward(self, x): return self.head(self.two(self.one(x)).mean((2, 3)))

@cache
def faces(seed=5, n=70): return toy_faces(n, seed=seed)

def loaders(data=None, tfms=(), **kwargs):
    return face_block(batch_tfms=[FaceAugment(), EraseRandom(), *tfms]).dataloaders(data or faces(), bs=16, device='cpu', **kwargs)

stages = ['one', 'two']

@cache
def phase1(): return quiet(attention_learner(loaders(), Tiny(), stages=stages))

def p_model(dls, attention='self', **kwargs):
    own = dict(stages=stages) if attention=='self' else {}
    channels = 4 if kwargs.get('perturb')=='stack' else 1
    return perturb_learner(dls, Tiny(channels), attention if own else phase1(), refine=1, **own, **kwargs)

learners = {
    'baseline': lambda dls: face_learner(dls, Tiny()),
    'attention': lambda dls: attention_learner(dls, Tiny(), stages=stages),
    'P, drop, own': p_model,
    'P, drop, frozen': lambda dls: p_model(dls, 'frozen'),
    'P, views, own': lambda dls: p_model(dls, perturb='views', views=True),
    'P, views, frozen': lambda dls: p_model(dls, 'frozen', perturb='views', views=True),
    'P, stack, frozen': lambda dls: p_model(dls, 'frozen', perturb='stack'),
    'ensemble': lambda dls: ensemble_learner([face_learner(dls, Tiny()), attention_learner(dls, Tiny(), stages=stages)])}

def quiet(learn, epochs=1, lr=1e-2, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, lr, **kwargs)
    return learn

def weights(learn): return {n: p.detach().clone() for n,p in learn.model.named_parameters()}

def moved(learn, before): return {n for n,p in learn.model.named_parameters() if not torch.equal(p, before[n])}

def trains(learn, epochs=1, **kwargs):
    "A training with these callbacks changes the weights, and the answers stay probabilities"
    before = weights(learn)
    quiet(learn, epochs, **kwargs)
    assert moved(learn, before) and np.isfinite(learn.recorder.losses[-1])
    answers(learn)

def answers(learn, n=9):
    with learn.no_bar(): p = learn.get_preds(dl=learn.dls.test_dl(faces()[:n]))[0]
    assert p.shape==(n, 7) and torch.allclose(p.sum(1), torch.ones(n), atol=1e-3)
    return p

habits = {}
def habit(f):
    habits[f.__name__.strip('_')] = f
    return f

@habit
def lr_find(learn, tmp):
    before = weights(learn)
    with learn.no_bar(): rate = learn.lr_find(num_it=12, show_plot=False).valley
    assert rate>0 and not moved(learn, before)

@habit
def fit_one_cycle(learn, tmp):
    before = weights(learn)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, 1e-2)
    assert moved(learn, before) and len(learn.recorder.hps['lr'])==len(learn.recorder.losses)

@habit
def fine_tune(learn, tmp):
    "In the first epoch the head alone learns, with norms; then everything"
    seen = []
    class Look(Callback):
        def before_train(self): seen.append([p.requires_grad for p in self.model.parameters()])
    with learn.no_bar(), learn.no_logging(): learn.fine_tune(1, cbs=Look())
    assert not all(seen[0]) and any(seen[0]) and all(seen[1])

@habit
def freeze(learn, tmp):
    learn.freeze()
    before = weights(learn)
    quiet(learn)
    names = {n for n in moved(learn, before) if not isinstance(learn.model.get_submodule(n.rpartition('.')[0]), nn.BatchNorm2d)}
    assert names and all('head' in n for n in names)

@habit
def unfreeze(learn, tmp):
    learn.freeze()
    learn.unfreeze()
    before = weights(learn)
    quiet(learn)
    assert any('one' in n for n in moved(learn, before)) and any('head' in n for n in moved(learn, before))

@habit
def discriminative_rates(learn, tmp):
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, slice(1e-5, 1e-3))
    rates = [h['lr'] for h in learn.opt.hypers]
    assert len(rates)>=2 and rates==sorted(rates) and rates[0]<rates[-1]/2

@habit
def show_batch(learn, tmp):
    learn.dls.show_batch(max_n=4)
    assert any(ax.images for ax in plt.gcf().axes)

@habit
def show_results(learn, tmp):
    with learn.no_bar():
        for i in (0, 1):
            plt.close('all')
            learn.show_results(ds_idx=i, max_n=4)
            assert len(plt.get_fignums())==1 and len([ax for ax in plt.gcf().axes if ax.images])==4
            assert all('\n' in ax.get_title() for ax in plt.gcf().axes if ax.images)

@habit
def predict(learn, tmp):
    with learn.no_bar(): name,number,p = learn.predict(faces()[3])
    assert name==learn.dls.vocab[number] and p.argmax()==number
    with learn.no_bar(): face = learn.predict(faces()[3], with_input=True)[0]
    assert (face[0] if isinstance(face, tuple) else face).shape==(1, 48, 48)

@habit
def get_preds(learn, tmp):
    with learn.no_bar():
        for i in (0, 1):
            p,labels,decoded,losses = learn.get_preds(ds_idx=i, with_loss=True, with_decoded=True)
            assert len(p)==len(labels)==len(decoded)==len(losses)==len(learn.dls[i].dataset)
            assert torch.equal(decoded.long(), p.argmax(1))
            assert torch.allclose(losses, -p.gather(1, labels.long()[:, None])[:, 0].log(), atol=.05)

@habit
def tta(learn, tmp):
    with learn.no_bar(): p,labels = learn.tta(n=2)
    assert p.shape==(len(learn.dls.valid_ds), 7) and torch.allclose(p.sum(1), torch.ones(len(p)), atol=1e-3)

@habit
def validate(learn, tmp):
    with learn.no_bar(): found = learn.validate()
    assert len(found)==3 and np.isfinite(found[0])

@habit
def save_load(learn, tmp):
    quiet(learn)
    expected = answers(learn)
    learn.save('kept')
    quiet(learn, 2, .1)
    assert not torch.allclose(answers(learn), expected, atol=1e-3)
    learn.load('kept')
    assert torch.allclose(answers(learn), expected, atol=1e-4)
    
    if hasattr(learn, 'recluster'): learn.recluster.clusterer.centroids = None
    learn.load('kept')
    assert torch.allclose(answers(learn), expected, atol=1e-4)

@habit
def export_load_learner(learn, tmp):
    quiet(learn)
    expected = answers(learn)
    learn.export('e.pkl')
    assert torch.allclose(answers(load_learner(tmp/'e.pkl')), expected, atol=1e-3)
    trains(learn)

@habit
def summary(learn, tmp):
    assert f'{sum(p.numel() for p in learn.model.parameters() if p.ndim>1):,}'[:2] and 'Linear' in str(learn.summary())

def interpretation(learn):
    with learn.no_bar(): return ClassificationInterpretation.from_learner(learn)

@habit
def plot_top_losses(learn, tmp):
    interp = interpretation(learn)
    with learn.no_bar(): interp.plot_top_losses(4)
    shown = [ax for ax in plt.gcf().axes if ax.images]
    assert len(shown)==4 and all(len(ax.get_title().split('/'))==4 for ax in shown)

@habit
def plot_confusion_matrix(learn, tmp):
    interp = interpretation(learn)
    with learn.no_bar(): interp.plot_confusion_matrix()
    assert len(plt.gcf().axes[0].texts)==49 and interp.confusion_matrix().sum()==len(learn.dls.valid_ds)

@habit
def MixUp_(learn, tmp): mixed(learn, MixUp())

@habit
def CutMix_(learn, tmp): mixed(learn, CutMix())

def mixed(learn, cb):
    "Every training batch is mixed, and the loss is the learner's own again"
    loss,seen = learn.loss_func,[]
    class Look(Callback):
        order = 9.5
        def before_batch(self):
            if self.training: seen.append((self.learn.loss_func is not loss, len(self.xb[0])==len(self.yb[0])==len(cb.yb1[0])))
    trains(learn, cbs=[cb, Look()])
    assert seen and all(a and b for a,b in seen) and learn.loss_func is loss

@habit
def SaveModelCallback_(learn, tmp):
    trains(learn, 2, cbs=SaveModelCallback(fname='best'))
    assert (tmp/'models'/'best.pth').exists()

@habit
def EarlyStoppingCallback_(learn, tmp):
    quiet(learn, 5, cbs=EarlyStoppingCallback(min_delta=100., patience=2))
    assert len(learn.recorder.values)==3

@habit
def ReduceLROnPlateau_(learn, tmp):
    trains(learn, 3, lr=1e-3, cbs=ReduceLROnPlateau(min_delta=100., patience=1))
    assert learn.opt.hypers[0]['lr']==pytest.approx(1e-5) and learn.opt.param_groups[0]['lr']==pytest.approx(1e-5)

@habit
def GradientAccumulation_(learn, tmp):
    steps = []
    class Count(Callback):
        def after_step(self): steps.append(1)
    trains(learn, cbs=[GradientAccumulation(32), Count()])
    n,size = len(learn.dls.train),16*4 if getattr(learn, 'recluster', None) and learn.recluster.perturb=='views' else 16
    assert len(steps)==n*size//32 if size<=32 else len(steps)==n

@habit
def GradientClip_(learn, tmp):
    norms = []
    class Look(Callback):
        order = GradientClip.order+1
        def before_step(self): norms.append(torch.stack([p.grad.norm() for p in self.model.parameters()]).norm())
    trains(learn, cbs=[GradientClip(.01), Look()])
    assert max(norms)<.0101

@habit
def CSVLogger_(learn, tmp):
    with learn.no_bar(): learn.fit(2, 1e-3, cbs=CSVLogger())
    assert len(pd.read_csv(tmp/'history.csv'))==2

@habit
def ShowGraphCallback_(learn, tmp): learn.fit(2, 1e-3, cbs=ShowGraphCallback())

@habit
def TensorBoardCallback_(learn, tmp):
    if not importlib.util.find_spec('tensorboard'): pytest.skip(not_tried)
    from fastai.callback.tensorboard import TensorBoardCallback
    trains(learn, cbs=TensorBoardCallback(log_dir=tmp/'tb'))
    assert list((tmp/'tb').iterdir())

@habit
def to_fp16(learn, tmp): trains(learn.to_fp16())

@habit
def to_bf16(learn, tmp): trains(learn.to_bf16())

@habit
def to_fp32(learn, tmp): trains(learn.to_fp16().to_fp32())

@habit
def ChannelsLast_(learn, tmp):
    trains(learn)
    assert any(p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous() for p in learn.model.parameters() if p.ndim==4)
    learn.to_contiguous()
    trains(learn)

@habit
def ParamScheduler_(learn, tmp):
    quiet(learn, cbs=ParamScheduler({'lr': SchedLin(1e-2, 1e-3)}))
    assert learn.recorder.lrs[0]==pytest.approx(1e-2) and learn.recorder.lrs[-1]<1e-2

@habit
def own_callback(learn, tmp):
    "Like RNNRegularizer: it reads the prediction and adds to the loss"
    added = []
    class Regularizer(Callback):
        run_valid = False
        def after_loss(self):
            self.learn.loss_grad += .1*self.pred.float().pow(2).mean()
            added.append((self.learn.loss_grad-self.learn.loss).item())
    trains(learn, cbs=Regularizer())
    assert added and all(a>0 for a in added)

@habit
def dls_replaced(learn, tmp):
    trains(learn)
    learn.dls = loaders(faces(6, 70))
    trains(learn)
    if hasattr(learn, 'recluster'): assert (learn.dls.train.data.column('clusters')>0).any()
    with learn.no_bar(): assert len(learn.get_preds()[0])==len(learn.dls.valid_ds)

@habit
def remove_cbs(learn, tmp):
    class Own(Callback): pass
    learn.add_cb(Own)
    assert hasattr(learn, 'own')
    learn.remove_cbs(Own)
    assert not hasattr(learn, 'own')
    trains(learn)

@habit
def remove_ReclusterCallback(learn, tmp):
    if not hasattr(learn, 'recluster'): pytest.skip(not_applicable)
    learn.remove_cb(learn.recluster)
    trains(learn)

@habit
def start_epoch(learn, tmp):
    quiet(learn, 2, start_epoch=1)
    assert len(learn.recorder.losses)==len(learn.dls.train)
    if hasattr(learn, 'recluster'): assert (learn.dls.train.data.column('clusters')>0).any()

@habit
def fit_flat_cos(learn, tmp):
    with learn.no_bar(), learn.no_logging(): learn.fit_flat_cos(3, 1e-3)
    assert learn.recorder.lrs[-1]<1e-3

@habit
def fit_sgdr(learn, tmp):
    with learn.no_bar(), learn.no_logging(): learn.fit_sgdr(1, 1, 1e-3)
    assert len(learn.recorder.losses)==len(learn.dls.train)

@habit
def ActivationStats_(learn, tmp):
    stats = ActivationStats(with_hist=True)
    quiet(learn, cbs=stats)
    assert len(stats.stats)==len(learn.dls.train)

@habit
def FetchPredsCallback_(learn, tmp):
    fetch = FetchPredsCallback()
    quiet(learn, cbs=fetch)
    assert len(fetch.preds[0])==len(learn.dls.valid_ds)

@habit
def ShortEpochCallback_(learn, tmp):
    quiet(learn, cbs=ShortEpochCallback(.1))
    assert len(learn.recorder.losses)==1
    trains(learn)

@habit
def TerminateOnNaNCallback_(learn, tmp):
    class Break(Callback):
        run_valid = False
        def after_loss(self): self.learn.loss = self.learn.loss*float('nan')
    quiet(learn, 3, cbs=[Break(), TerminateOnNaNCallback()])
    assert len(learn.recorder.losses)<=1
    trains(learn)

@habit
def own_optimizer(learn, tmp):
    learn.opt_func = ranger
    trains(learn)

@habit
def own_loss(learn, tmp):
    for loss in (LabelSmoothingCrossEntropyFlat(), FocalLossFlat(), nn.CrossEntropyLoss()):
        learn.loss_func = loss
        quiet(learn)
    assert np.isfinite(learn.recorder.losses[-1])

@habit
def BnFreeze_(learn, tmp):
    learn.freeze()
    trains(learn, cbs=BnFreeze())

@habit
def train_metrics(learn, tmp):
    learn.recorder.train_metrics = True
    quiet(learn)
    assert 'train_accuracy' in learn.recorder.metric_names and len(learn.recorder.values[0])==6

@habit
def fit_quick(learn, tmp):
    with learn.no_bar(), learn.no_logging(): learn.fit_quick(1)
    assert learn.opt is None and np.isfinite(learn.recorder.losses[-1])

@habit
def MixUp_and_SmallFirst(learn, tmp):
    sizes = []
    class Look(Callback):
        order,run_valid = 9.9,False
        def before_batch(self): sizes.append(self.xb[0].shape[-1])
    quiet(learn, 2, cbs=[MixUp(), SmallFirst(), Look()])
    assert {*sizes}=={36, 48}

@habit
def classification_report(learn, tmp):
    interp = interpretation(learn)
    with learn.no_bar(): interp.print_classification_report()
    assert isinstance(interp.most_confused(), list)
    assert len(interp.top_losses(3, items=True)[2])==3

@habit
def show_training_loop(learn, tmp): learn.show_training_loop()

@habit
def pickled(learn, tmp):
    trains(learn)
    copied = pickle.loads(pickle.dumps(learn))
    assert torch.allclose(answers(copied), answers(learn), atol=.02)
    trains(copied)

@habit
def cloned(learn, tmp):
    trains(learn)
    before,copied = weights(learn),deepcopy(learn)
    assert torch.allclose(answers(copied), answers(learn), atol=.02)
    trains(copied)
    assert not moved(learn, before)

@habit
def fit_paper(learn, tmp):
    opt_func = learn.opt_func
    learn.metrics = [error_rate]
    with learn.no_bar(), learn.no_logging(): learn.fit_paper(2)
    assert learn.opt_func is opt_func

# habits that come with loaders of their own
own_loaders = dict(
    Normalize=lambda: loaders(tfms=[Normalize()]),
    balance_classes=lambda: balance_classes(loaders()),
    WeightedDL=lambda: face_block(batch_tfms=[FaceAugment()]).weighted_dataloaders(faces(), np.ones(len(faces())), bs=16, device='cpu'))
for _name in own_loaders:
    def _f(learn, tmp): trains(learn)
    habits[_name] = _f

def cell(name, column, tmp):
    "'works', 'refuses', 'has none', 'not tried', or what is wrong"
    torch.manual_seed(0)
    plt.close('all')
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            learn = learners[column](own_loaders.get(name, loaders)())
            learn.path = tmp
            habits[name](learn, tmp)
    except pytest.skip.Exception as e: return str(e)
    except Exception as e:
        where = Path(traceback.extract_tb(e.__traceback__)[-1].filename)
        refused = isinstance(e, ValueError) and where.parent.name=='fer_perturb'
        return 'refuses' if refused else f'fails: {type(e).__name__} {e} ({where.name})'
    finally: plt.close('all')
    return 'works'

table = {} # {habit: {learner: what `cell` says}}

@pytest.mark.parametrize('name', list(habits))
def test_habit(name, tmp_path):
    "On every learner it works as fastai's own, or is refused with a sentence"
    table[name] = {}
    for column in learners:
        (tmp_path/column).mkdir()
        table[name][column] = cell(name, column, tmp_path/column)
    wrong = {column: found for column,found in table[name].items() if found.startswith('fails')}
    assert not wrong, wrong

signs = {'works': '✓', 'refuses': 'refused', 'has none': '–'}

def lines():
    "The table as it stands on the page"
    return {name: f'| {name} | ' + ' | '.join(signs[found] for found in row.values()) + ' |' for name,row in table.items()
            if not_tried not in row.values()}

def test_the_page_has_the_table():
    "Needs the cells of the tests above"
    if len(table)<len(habits): pytest.skip('the whole file makes the table')
    found = [found for row in table.values() for found in row.values()]
    print(*lines().values(), sep='\n')
    print({said: found.count(said) for said in dict.fromkeys(found)})
    page = (Path(__file__).parent.parent/'nbs'/'34_habits.ipynb').read_text()
    assert not [line for line in lines().values() if line not in page]
