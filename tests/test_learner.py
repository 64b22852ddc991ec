"The three learners: what their presets mean, what they save, and what they say about mistakes"
import warnings

import pytest
import torch
from fastai.vision.all import (Adam, AvgMetric, Callback, CrossEntropyLossFlat, DataLoader, DataLoaders, FocalLossFlat, ImageDataLoaders,
                               Optimizer, Resize, load_learner)
from PIL import Image
from torch import nn
from torchvision.transforms.v2.functional import ten_crop

from fer_perturb.attention import AttendedStage, SpatialAttention
from fer_perturb.augment import EraseRandom, FaceAugment
from fer_perturb.backbones import create_backbone
from fer_perturb.learner import (BFloat16, MeanTeacher, MirrorAverage, TenCrop, adamw, attention_learner, bfloat16_pays, face_learner, perturb_learner, precision_callbacks,
                                 quick_augment, sgd)
from fer_perturb.loaders import face_block
from fer_perturb.perturb import Scheme, perturbations, schemes
from fer_perturb.saliency import saliency_kinds
from fer_perturb.toyfaces import toy_faces


def quiet_fit(learn, epochs=1, lr=1e-3):
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, lr)
    return learn

@pytest.fixture(scope='session')
def faces():
    return toy_faces(140, seed=5)

@pytest.fixture
def dls(faces): return face_block(batch_tfms=[FaceAugment(), EraseRandom()]).dataloaders(faces, bs=32)

@pytest.fixture(scope='module')
def phase1(faces): return quiet_fit(attention_learner(face_block().dataloaders(faces, bs=32)))

def test_presets_name_existing_parts():
    for scheme in schemes.values():
        assert scheme.saliency in saliency_kinds and scheme.perturb in perturbations and 0<=scheme.p<=1 and 0<scheme.keep<=1
    assert set(schemes)=={'ours', 'paper', 'released'} and schemes['ours']==Scheme()

@pytest.mark.parametrize('scheme', list(schemes))
def test_every_reading_trains_and_predicts(dls, faces, scheme):
    learn = quiet_fit(perturb_learner(dls, scheme=scheme))
    probabilities,labels = learn.get_preds(dl=learn.dls.test_dl(faces[:9], with_labels=True))
    assert probabilities.shape==(9, 7) and torch.allclose(probabilities.sum(1), torch.ones(9), atol=1e-4)
    assert torch.equal(labels.long(), faces.labels[:9])

def test_erasing_makes_way_for_dropping(dls, phase1):
    def erases(learn): return any(isinstance(t, EraseRandom) for t in learn.dls.train.after_batch.fs)
    assert erases(face_learner(dls)) and not erases(perturb_learner(dls, attention=phase1))
    assert erases(perturb_learner(dls, attention=phase1, erase=True)) and erases(perturb_learner(dls, attention=phase1, scheme='paper'))

def test_fields_of_a_scheme_can_be_overridden(dls, phase1):
    recluster = perturb_learner(dls, attention=phase1, n_clusters=4, keep=.2, p=.3, every=2, feature='attention').recluster
    assert (recluster.p, recluster.every, recluster.clusterer.n_clusters, recluster.clusterer.keep, recluster.clusterer.feature)==(.3, 2, 4, .2, 'attention')

def test_frozen_attention_stays_frozen(dls, phase1):
    before = {name: t.clone() for name,t in phase1.model.state_dict().items()}
    quiet_fit(perturb_learner(dls, attention=phase1))
    assert all(torch.equal(t, before[name]) for name,t in phase1.model.state_dict().items())

def test_input_attention_sees_the_image(dls):
    learn = attention_learner(dls, attention='input')
    stage, = [m for m in learn.model.modules() if isinstance(m, AttendedStage)]
    assert isinstance(stage.stage, nn.Identity) and type(stage.attention) is SpatialAttention

def test_export_keeps_attention_and_centroids_and_no_images(dls, faces, phase1, tmp_path):
    learn = quiet_fit(perturb_learner(dls, attention=phase1, views=True))
    expected = learn.get_preds(dl=learn.dls.test_dl(faces[:5]))[0]
    learn.path = tmp_path
    learn.export('p.pkl')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        loaded = load_learner(tmp_path/'p.pkl')
    assert torch.allclose(loaded.get_preds(dl=loaded.dls.test_dl(faces[:5]))[0], expected, atol=.01) # bfloat16 rounds differently in another memory layout
    Image.new('RGB', (90, 60), 'gray').save(tmp_path/'photo.png')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        emotion,index,probabilities = loaded.predict(tmp_path/'photo.png')
    assert emotion==learn.dls.vocab[index] and len(probabilities)==7
    weights = sum(p.numel()*p.element_size() for m in (learn.model, phase1.model) for p in m.state_dict().values())
    assert (tmp_path/'p.pkl').stat().st_size<weights + faces.images.numel()

def test_colour_images_of_another_size_and_other_classes(tmp_path):
    for name in ('yes', 'no'):
        (tmp_path/name).mkdir()
        for i in range(10): Image.new('RGB', (70, 50), (20*i, 100, 200 if name=='yes' else 20)).save(tmp_path/name/f'{i}.png')
    dls = ImageDataLoaders.from_folder(tmp_path, valid_pct=.2, seed=0, item_tfms=Resize(32), bs=8, num_workers=0)
    phase1 = quiet_fit(attention_learner(dls))
    learn = quiet_fit(perturb_learner(dls, attention=phase1))
    assert learn.get_preds()[0].shape==(4, 2)
    assert quiet_fit(perturb_learner(dls)).get_preds()[0].shape==(4, 2)

def test_ten_crops_are_averaged(dls, faces):
    learn = quiet_fit(face_learner(dls))
    got = learn.get_preds(dl=learn.dls.test_dl(faces[:4]), cbs=TenCrop(40), act=nn.Identity())[0]
    images,model = faces.images[:4, None]/255,learn.model.eval().float()
    with torch.no_grad(): expected = torch.stack([model(crop) for crop in ten_crop(images, [40, 40])]).mean(0)
    assert (got-expected).abs().max()<.1*(got-model(images)).abs().max()

def test_mirror_images_are_averaged(dls, faces):
    learn = quiet_fit(perturb_learner(dls))
    learn.remove_cbs([cb for cb in learn.cbs if isinstance(cb, BFloat16)])
    got = learn.get_preds(dl=learn.dls.test_dl(faces[:4]), cbs=MirrorAverage(), act=nn.Identity())[0]
    images,model = faces.images[:4, None]/255,learn.model.eval().float()
    with torch.no_grad(): views = model(images),model(images.flip(-1))
    assert torch.allclose(got, sum(views)/2, atol=1e-5) and not torch.allclose(got, views[0], atol=1e-5)

def test_fit_paper_lowers_the_rate_when_accuracy_stops_rising(faces):
    class Flat(AvgMetric):
        def __init__(self): super().__init__(lambda *_: torch.tensor(.5))
        @property
        def name(self): return 'accuracy'
    rates = []
    class Watch(Callback):
        order = 99
        def after_epoch(self): rates.append(self.opt.hypers[0]['lr'])
        def after_fit(self): self.optimizer = self.opt.opt.defaults
    learn,watch = face_learner(face_block().dataloaders(faces, bs=64), metrics=[Flat()]),Watch()
    with learn.no_bar(), learn.no_logging(): learn.fit_paper(8, cbs=watch)
    assert watch.optimizer['nesterov'] and watch.optimizer['momentum']==.9 and learn.opt is None and learn.opt_func is adamw
    assert rates==pytest.approx([.01]*6 + [.0075]*2)

class Sizes(Callback):
    "Heights of the images that the model is trained and validated on, epoch by epoch"
    order = 99
    def before_fit(self): self.seen = {}
    def after_batch(self): self.seen.setdefault(self.epoch, set()).add(self.xb[0].shape[-1])

def pooled(channels=1): return nn.Sequential(nn.Conv2d(channels, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 7)) # takes any size

def counting(): return nn.Sequential(nn.Flatten(), nn.Linear(48*48, 7)) # takes 48×48 pixels and nothing else

def vanishing(): return nn.Sequential(nn.MaxPool2d(40), nn.Flatten(), nn.Linear(1, 7)) # leaves nothing of 36 pixels

@pytest.mark.parametrize('model, epochs, sizes', [
    (pooled(), 9, [48]*9), (pooled(), 10, [36]*4 + [48]*6), (pooled(), 16, [36]*7 + [48]*9),
    (counting(), 10, [48]*10), (vanishing(), 10, [48]*10)])
def test_fit_quick_begins_with_small_images_if_the_model_takes_them(faces, model, epochs, sizes):
    learn = face_learner(face_block().dataloaders(faces, bs=64), model, cbs=Sizes())
    with learn.no_bar(), learn.no_logging(): learn.fit_quick(epochs)
    assert learn.sizes.seen=={epoch: {size} for epoch,size in enumerate(sizes)}

class Recipe(Callback):
    "What a training is done with, at its end"
    order = 99
    def after_fit(self): self.found = type(getattr(self.opt, 'opt', self.opt)).__name__,self.opt.hypers[0]['wd'],self.learn.loss_func.func.label_smoothing

@pytest.mark.parametrize('kind, options, optimizer, decay', [(kind, {}, 'Muon', .01) for kind in ('baseline', 'attention', 'frozen', 'self')] + [
    ('baseline', dict(opt_func=sgd), 'SGD', 5e-4), ('attention', dict(opt_func=adamw), 'AdamW', .01)])
def test_fit_quick_brings_its_own_optimizer_and_loss_and_takes_them_away(faces, phase1, kind, options, optimizer, decay):
    dls = face_block(batch_tfms=quick_augment()).dataloaders(faces, bs=32)
    weight = torch.arange(1., 8.)
    kwargs = dict(loss_func=CrossEntropyLossFlat(weight=weight), opt_func=Adam, wd=.3, cbs=Recipe())
    learn = face_learner(dls, **kwargs) if kind=='baseline' else attention_learner(dls, **kwargs) if kind=='attention' else \
        perturb_learner(dls, attention=phase1 if kind=='frozen' else 'self', **kwargs)
    loss = learn.loss_func
    with learn.no_bar(), learn.no_logging(): learn.fit_quick(1, **options)
    assert learn.recipe.found==(optimizer, decay, .1)
    assert learn.loss_func is loss and loss.func.label_smoothing==0 and torch.equal(loss.func.weight.cpu(), weight)
    assert learn.opt_func is Adam and learn.opt is None and learn.wd==.3
    quiet_fit(learn)
    assert type(learn.opt) is Optimizer

def test_fit_quick_leaves_other_losses_alone_and_restores_after_an_error(faces):
    dls = face_block().dataloaders(faces, bs=32)
    class Stop(Callback):
        def after_batch(self):
            self.seen = self.learn.loss_func
            raise KeyboardInterrupt
    for loss,smoothed in ((FocalLossFlat(), False), (CrossEntropyLossFlat(label_smoothing=.3), False), (nn.CrossEntropyLoss(), True)):
        learn = face_learner(dls, loss_func=loss, cbs=Stop())
        with pytest.raises(KeyboardInterrupt), learn.no_bar(), learn.no_logging(): learn.fit_quick(1, 1e-3)
        assert (learn.stop.seen is not loss)==smoothed and learn.loss_func is loss and learn.opt_func is not sgd and learn.opt is None

@pytest.mark.parametrize('kwargs, channels', [(dict(), 1), (dict(perturb='stack'), 4), (dict(perturb='views'), 1)])
def test_fit_quick_hides_regions_before_it_shrinks(faces, phase1, kwargs, channels):
    learn = perturb_learner(face_block().dataloaders(faces, bs=64), pooled(channels), attention=phase1, cbs=Sizes(), **kwargs)
    with learn.no_bar(), learn.no_logging(): learn.fit_quick(10)
    assert [*learn.sizes.seen.values()]==[{36}]*4 + [{48}]*6

def test_choosing_a_precision_draws_no_random_numbers():
    bfloat16_pays.cache_clear()
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    bfloat16_pays()
    assert torch.rand(1)==expected

def test_precision_by_device(): assert [type(cb).__name__ for cb in precision_callbacks('cuda')]==['ChannelsLast', 'MixedPrecision']

def test_mistakes(dls, faces, phase1):
    with pytest.raises(ValueError, match='choose one of ours'): perturb_learner(dls, scheme='mine')
    with pytest.raises(ValueError, match='691 attention pixels'): perturb_learner(dls, attention=phase1, n_clusters=700)
    with pytest.raises(ValueError, match='choose 1 to'): perturb_learner(dls, attention=phase1, n_clusters=0)
    with pytest.raises(ValueError, match='has no attention'): perturb_learner(dls, attention=create_backbone('slim_resnet18'))
    with pytest.raises(ValueError, match="or 'self'"): perturb_learner(dls, attention='resnet18')
    with pytest.raises(ValueError, match='frozen attention'): perturb_learner(dls, perturb='stack')
    with pytest.raises(ValueError, match='did you mean'): face_learner(dls, 'resnet-18')
    with pytest.raises(ValueError, match='have no classes'): face_learner(DataLoaders(DataLoader(faces.images, bs=4)))

def test_a_mean_teacher_is_the_running_mean_and_clusters_come_from_it(dls):
    asked = []
    class Watch(Callback):
        order = MeanTeacher.order+1
        def before_fit(self): self.mean = None
        def before_train(self): asked.append(self.recluster.clusterer.model)
        def after_step(self):
            now = [p.detach().clone() for p in self.model.parameters()]
            self.mean = now if self.mean is None else [.9*m+.1*p for m,p in zip(self.mean, now)]
    learn = quiet_fit(perturb_learner(dls, 'test_resnet', cbs=[MeanTeacher(.9), Watch()]), 2)
    teacher = learn.mean_teacher.mean.module
    assert all(m is teacher for m in asked) and teacher is not learn.model and learn.recluster.clusterer.model is learn.model
    assert all(torch.allclose(a, b, atol=1e-6) for a,b in zip(teacher.parameters(), learn.watch.mean))
    assert not all(torch.equal(a, b) for a,b in zip(teacher.parameters(), learn.model.parameters()))
