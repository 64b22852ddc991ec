"Saliency, clusters and what is hidden go by what the network sees; nothing is left behind; settings that make no sense are refused"
import warnings

import pytest
import torch
from fastai.vision.all import (Callback, CancelBatchException, CancelEpochException, CancelFitException, CancelTrainException, CancelValidException,
                               CrossEntropyLossFlat, DataLoader, DataLoaders, Learner, Normalize, TensorImage, Transform)
from fastai.callback.mixup import MixUp
from helpers import colour_dls, quietly
from torch import nn

from fer_perturb.evaluate import (accuracy_change, bootstrap, calibration, class_accuracy, class_table, correct, macro_f1, mcnemar, occlusion_table,
                                  plot_confusion, scores, seed_change, summary_table)
from fer_perturb.forms import Batch, FormCallback, erase, hide
from fer_perturb.learner import BFloat16, attention_learner, face_learner, perturb_learner
from fer_perturb.loaders import face_block
from fer_perturb.perturb import Clusterer, ReclusterCallback, cluster_views, drop_cluster, keep_cluster, stack_clusters
from fer_perturb.saliency import saliency_maps
from fer_perturb.toyfaces import toy_faces


@pytest.fixture(scope='module')
def few(): return toy_faces(70, seed=3)

def loaders(faces, *tfms, bs=14): return face_block(batch_tfms=list(tfms)).dataloaders(faces, bs=bs, device='cpu')

def normalize(): return Normalize.from_stats([.4], [.2], cuda=False)

class Look(Callback):
    "What reaches the network"
    order = 9.9
    def before_fit(self): self.seen = {True: [], False: []}
    def before_batch(self): self.seen[bool(self.training)].append(self.xb[0].detach().clone())

@pytest.mark.parametrize('perturb', ['drop', 'keep', 'views', 'stack'])
def test_regions_of_normalised_images(few, perturb):
    "Saliency is that of normalised images, clusters are those of the pixels, and what is hidden becomes the gray's normalised value"
    phase1 = quietly(attention_learner(loaders(few, normalize()), 'test_resnet'))
    learn = perturb_learner(loaders(few, normalize()), 'test_resnet', attention=phase1, perturb=perturb, views=perturb=='views', p=1., cbs=Look())
    quietly(learn)
    data = learn.dls.train.data
    images = data.images[:, None]/255
    by_hand = saliency_maps(phase1.model, (images-.4)/.2)
    assert (learn.recluster.saliency.int()-by_hand.int()).abs().max()<=1
    assert not torch.equal(by_hand, saliency_maps(phase1.model, images))
    plain = Clusterer(None)
    plain.centroids = learn.recluster.clusterer.centroids
    assert ((plain(images, by_hand)==data.column('clusters')).float().mean()>.999)
    gray = (.5-.4)/.2
    for batch in learn.look.seen[True]: assert .01<((batch-gray).abs()<1e-6).float().mean()<.95 and batch.min()<-.3
    valid = learn.look.seen[False][0]
    whole = learn.dls.valid.one_batch()[0].as_subclass(torch.Tensor)
    if perturb=='views': assert torch.allclose(valid[3::4], whole, atol=1e-5) and ((valid[0]-gray).abs()<1e-6).any()
    elif perturb=='stack': assert torch.allclose(valid[:, :1], whole, atol=1e-5) and ((valid[:, 1:]-gray).abs()<1e-6).float().mean()>.5
    else: assert torch.equal(valid, whole)

def test_normalised_or_not_is_the_same_for_the_scheme(few):
    "A network behind Normalize that undoes it learns and clusters as without both"
    class Undo(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model
        def forward(self, x): return self.model(x*.2+.4)
        def saliency_maps(self, images, *args): return (255*(images*.2+.4 if images.is_floating_point() else images/255)).round().byte()[:, 0]
    found = []
    for tfms in ([], [normalize()]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(36, 7))
        undo = Undo(net) if tfms else net
        attention = Undo(net)
        if not tfms: attention.saliency_maps = lambda images, *args: (255*images if images.is_floating_point() else images).round().byte()[:, 0]
        learn = perturb_learner(loaders(few, *tfms), undo, attention=attention, views=True, perturb='views')
        torch.manual_seed(0)
        quietly(learn)
        found.append((learn.dls.train.data.column('clusters'), learn.get_preds()[0]))
    assert (found[0][0]==found[1][0]).float().mean()>.999 and torch.allclose(found[0][1], found[1][1], atol=.02)

class Colour(Transform):
    "Three channels of 32 pixels, as a pretrained network may want them"
    order = 50
    def encodes(self, x:TensorImage): return nn.functional.interpolate(x, 32).expand(-1, 3, -1, -1)

def test_loaders_that_change_size_and_channels(few):
    phase1 = quietly(attention_learner(loaders(few, Colour()), 'test_resnet'))
    assert saliency_maps(phase1, few.images[:3, None]).shape==(3, 48, 48)
    learn = quietly(perturb_learner(loaders(few, Colour()), 'test_resnet', attention=phase1))
    assert (learn.dls.train.data.column('clusters')>0).float().mean()==pytest.approx(.3, abs=.01)

def test_other_loaders_weights_or_kinds_mean_other_saliency(few):
    phase1 = quietly(attention_learner(loaders(few), 'test_resnet'))
    learn = quietly(perturb_learner(loaders(few), 'test_resnet', attention=phase1))
    first = learn.recluster.saliency
    quietly(learn)
    assert learn.recluster.saliency is first and [c['new_saliency'] for c in learn.recorder.clusterings]==[False]
    other = toy_faces(70, seed=9)
    learn.dls = loaders(other)
    quietly(learn)
    second = learn.recluster.saliency
    assert torch.equal(second, saliency_maps(phase1.model, learn.dls.train.data.images[:, None]))
    learn.recluster.clusterer.saliency = 'gates'
    quietly(learn)
    assert not torch.equal(learn.recluster.saliency, second)
    learn.recluster.clusterer.model = quietly(attention_learner(loaders(few), 'test_resnet'), 2).model
    third = learn.recluster.saliency
    quietly(learn)
    assert learn.recluster.saliency is not third
    images = learn.dls.train.data.images
    learn.dls.train.data.set_rows('images', 255-images)
    quietly(learn)
    assert torch.equal(learn.recluster.saliency, saliency_maps(learn.recluster.clusterer.model, 255-images[:, None], 'gates'))

@pytest.mark.parametrize('kwargs', [dict(scheme='released'), dict(perturb='views', views=True), dict(perturb='views', views=True, every=3)])
def test_centroids_come_from_training_images(few, kwargs):
    "Whatever is validated or predicted before the first epoch; and the training is then as if nothing had been"
    def learner():
        torch.manual_seed(0)
        return perturb_learner(loaders(few), 'test_resnet', **kwargs)
    odd = toy_faces(70, seed=8)
    found = []
    for before in (lambda l: l.validate(), lambda l: l.get_preds(dl=l.dls.test_dl(odd)), lambda l: l.predict(odd[3])):
        learn = learner()
        with learn.no_bar(): before(learn)
        found.append(learn.recluster.clusterer.centroids)
        assert not (learn.dls.train.data.column('clusters') if learn.dls.train.data.column('clusters') is not None else torch.zeros(1)).any()
    assert all(torch.equal(c, found[0]) for c in found)
    ends = []
    for look in (False, True):
        learn = learner()
        if look:
            with learn.no_bar(): learn.validate()
        torch.manual_seed(1)
        quietly(learn)
        ends.append(learn.recluster.clusterer.centroids)
    assert torch.equal(*ends)

def test_without_training_images_it_is_said(few, tmp_path):
    learn = perturb_learner(loaders(few), 'test_resnet', perturb='views', views=True)
    learn.dls = learn.dls.new_empty()
    with pytest.raises(ValueError, match='no training images to find them in'), learn.no_bar(): learn.predict(few[0])

signals = [KeyboardInterrupt, RuntimeError, CancelBatchException, CancelEpochException, CancelTrainException, CancelValidException, CancelFitException]

@pytest.mark.parametrize('signal', signals)
@pytest.mark.parametrize('where', ['before_batch', 'in the network', 'after_pred', 'after_loss', 'before_validate'])
@pytest.mark.parametrize('plain', [False, True], ids=['ours', "fastai's learner"])
def test_nothing_is_left_behind(few, signal, where, plain):
    "Half precision, MixUp's loss, callbacks that rest: all as before, and the next training works"
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear,self.broken = nn.Linear(48*48, 7),False
        def forward(self, x):
            out = self.linear(x.flatten(1))
            if self.broken:
                self.broken = False
                raise signal('stop')
            return out
    class Break(Callback):
        order = 99
        def before_batch(self):
            self.model.broken,self.done = where=='in the network' and not self.done,True
        def __init__(self): self.done = False
    def now(self):
        if not self.done:
            self.done = True
            raise signal('stop')
    if where!='in the network' and where!='before_batch': setattr(Break, where, now)
    if where=='before_batch': Break.before_batch = now
    if plain: learn = Learner(loaders(few), Net(), loss_func=CrossEntropyLossFlat(), cbs=BFloat16())
    else:
        learn = face_learner(loaders(few), Net())
        if not hasattr(learn, 'bfloat16'): learn.add_cb(BFloat16())
    loss,logger,names = learn.loss_func,learn.logger,[cb.name for cb in learn.cbs]
    mix = [] if plain else [MixUp()]
    try:
        with warnings.catch_warnings(), learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3, cbs=[*mix, Break()])
    except signals[0]: assert signal is signals[0]
    except RuntimeError: assert signal is RuntimeError
    except (CancelEpochException, CancelTrainException, CancelValidException, CancelBatchException): pass # raised where fastai does not catch it
    learn.model.broken = False
    assert not torch.is_autocast_enabled('cpu')
    if not plain or where!='before_batch': assert 'forward' not in vars(learn.model)
    assert learn.logger is logger and sorted(cb.name for cb in learn.cbs)==sorted(names)
    if not plain: assert learn.loss_func is loss
    assert (torch.ones(2, 2)@torch.ones(2, 2)).dtype==torch.float32
    quietly(learn)
    assert len(learn.get_preds()[0])==len(learn.dls.valid_ds)

nan = float('nan')

@pytest.mark.parametrize('kwargs', [dict(n_clusters=256), dict(n_clusters=0), dict(n_clusters=2.5), dict(n_clusters=nan), dict(n_clusters=True), dict(p=nan), dict(p=-.1),
    dict(p=1.5), dict(p='half'), dict(p=float('inf')), dict(refine=-3), dict(refine=1.5), dict(refine=nan), dict(every=1.5), dict(every=0), dict(every=-1), dict(every=nan),
    dict(keep=nan), dict(keep=0), dict(keep=1.2), dict(keep=-.3), dict(fill=nan), dict(fill=float('inf')), dict(fill='gray'), dict(feature='colour'), dict(saliency='none')])
def test_settings_that_make_no_sense(few, kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs)) if 'feature' not in kwargs and 'saliency' not in kwargs else 'no '):
        perturb_learner(loaders(few), 'test_resnet', **kwargs)

def test_settings_of_the_parts(few):
    images,maps = torch.rand(4, 1, 48, 48),torch.ones(4, 48, 48, dtype=torch.uint8)
    for f in (drop_cluster, keep_cluster):
        for kwargs in (dict(p=nan), dict(p=2), dict(n_clusters=300), dict(fill=nan)):
            with pytest.raises(ValueError): f(images, maps, **kwargs)
    for f in (cluster_views, stack_clusters):
        for kwargs in (dict(n_clusters=300), dict(fill=nan)):
            with pytest.raises(ValueError): f(images, maps, **kwargs)
    for wrong in (lambda: hide(Batch(images, maps), where='ear'), lambda: hide(Batch(images, maps), p='often'), lambda: hide(Batch(images, maps), fill='pink'),
                  lambda: erase(Batch(images), p=nan), lambda: FormCallback('own', n_clusters=256), lambda: Clusterer(None, sample=0), lambda: Clusterer(None, refine=-3),
                  lambda: ReclusterCallback(Clusterer(None), every=1.5), lambda: ReclusterCallback(Clusterer(None), p=nan)):
        with pytest.raises(ValueError): wrong()

def test_255_clusters_do_not_wrap():
    images = torch.rand(2, 1, 48, 48)
    clusterer = Clusterer(None, n_clusters=255, keep=1., refine=1).fit(images, torch.rand(2, 48, 48))
    clusters = clusterer(images, torch.rand(2, 48, 48))
    assert clusters.min()>=1 and clusters.max()==255
    views = cluster_views(images, clusters, 255, fill=2.).unflatten(0, (2, 256))
    assert torch.equal(views[:, 255], images) and (views[:, :255]==2.).any()

@pytest.mark.parametrize('value', [1e5, nan, float('inf'), -7.])
def test_pixels_that_are_none(value):
    images = torch.rand(4, 1, 48, 48)
    images[1, 0, 5, 5] = value
    with pytest.raises(ValueError, match=r'pixels in \[0,1\]'): Clusterer(None).fit(images, torch.rand(4, 48, 48))

@pytest.mark.parametrize('own', [False, True])
def test_nan_in_the_attention_model(few, own):
    phase1 = attention_learner(loaders(few), 'test_resnet')
    learn = perturb_learner(loaders(few), 'test_resnet', attention='self' if own else phase1)
    with torch.no_grad(): next((learn if own else phase1).model.parameters()).fill_(nan)
    with pytest.raises(ValueError, match='its training has diverged'): quietly(learn)

def test_tables_refuse_what_does_not_belong_together():
    p,labels,names = torch.rand(12, 3).softmax(1),torch.arange(12)%3,tuple('abc')
    broken = p.clone()
    broken[4] = nan
    short = p[:1] # would broadcast
    for bad in (broken, short):
        for f in (lambda: correct(bad, labels), lambda: summary_table(dict(m=bad), labels), lambda: accuracy_change(p, bad, labels), lambda: macro_f1(bad, labels),
                  lambda: class_accuracy(bad, labels), lambda: class_table(p, dict(m=bad), labels, names), lambda: scores(bad, labels, names),
                  lambda: calibration(bad, labels), lambda: plot_confusion(dict(m=bad), labels, names), lambda: occlusion_table(dict(m=p), dict(m=bad), labels, names)):
            with pytest.raises(ValueError): f()
    with pytest.raises(ValueError): mcnemar(torch.ones(1), torch.ones(5))
    with pytest.raises(ValueError): seed_change(torch.ones(2, 5), torch.ones(2, 1))
    with pytest.raises(ValueError): bootstrap(torch.tensor([1., nan]))

def test_a_network_that_does_not_fit_is_refused_at_once(few):
    dls = loaders(few)
    for arch in (nn.Linear(3, 3), nn.Conv2d(3, 7, 3), nn.Sequential(nn.Flatten(), nn.Linear(48*48, 5))):
        with pytest.raises(ValueError, match='cannot classify images'): face_learner(dls, arch)
    for arch in (torch.nn.Linear, lambda: 0, None, 7):
        with pytest.raises(ValueError, match='give a name'): face_learner(dls, arch)
