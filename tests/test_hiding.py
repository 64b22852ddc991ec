"Forms: each hides what it says, moves labels by what it pastes, draws its numbers in one place, and runs on a GPU without a stop"
import pytest
import torch
from fastai.vision.all import Callback, CrossEntropyLossFlat
from torch._subclasses.fake_tensor import FakeTensorMode

from fer_perturb.augment import FaceAugment
from fer_perturb.forms import Batch, DoubleBatch, FormCallback, SoftCrossEntropy, forms, hide, move_maps, regions, square_patch
from fer_perturb.learner import face_learner, perturb_learner
from fer_perturb.loaders import face_block


@pytest.fixture
def batch():
    "Sixteen images in two tones; image i has clusters at columns i to i+11"
    maps = torch.zeros(16, 48, 48, dtype=torch.uint8)
    for i in range(16):
        for k in range(3): maps[i, 10:34, i+4*k:i+4*k+4] = k+1
    images = .1 + .02*torch.arange(16.)[:, None, None, None].expand(16, 1, 48, 48).clone()
    return Batch(images, maps, torch.eye(16), 3, progress=1.)

def columns(hidden): return [h.any(0).nonzero()[:, 0].tolist() for h in hidden]

def test_own_and_foreign(batch):
    for name,shift in (('own', 0), ('foreign', 1)):
        hidden = regions[name](batch)
        for i,c in enumerate(columns(hidden)): assert len(c)==4 and (c[0]-(i-shift)%16)%4==0 and 0<=c[0]-(i-shift)%16<12, name

def test_moved_maps_keep_their_shape(batch):
    moved = move_maps(batch.maps, torch.full((16,), 1/6), torch.full((16,), -1/12))
    assert torch.equal(moved[:, 6:30, 8:], batch.maps[:, 10:34, :-8])

def test_opposite_spares_the_own_map(batch):
    hidden = torch.stack([regions['opposite'](batch) for _ in range(20)])
    assert hidden.any() and not (hidden & (batch.maps>0)).any()

def test_a_patch_has_a_clusters_area(batch):
    areas = torch.cat([square_patch(batch).sum((1, 2)).float() for _ in range(20)])
    assert areas.mean()==pytest.approx(96, rel=.05) and areas.max()<=121

def test_only_images_that_are_hit_change(batch):
    before = batch.images.clone()
    changed = []
    for _ in range(40):
        batch.images = before
        hide(batch, p=.25)
        changed.append((batch.images!=before).flatten(1).any(1))
        assert set(batch.images[batch.images!=before].tolist())<={.5}
    assert torch.cat(changed).float().mean()==pytest.approx(.25, abs=.07)

@pytest.mark.parametrize('name', ['cutmix', 'cutmix_own_area', 'cutmix_foreign_area'])
def test_labels_move_by_the_pasted_share(batch, name):
    before = batch.images.clone()
    forms[name].apply(batch)
    share = (batch.images!=before).float().mean((1, 2, 3))
    assert share.max()>0
    assert torch.allclose(torch.stack([batch.targets[i, (i-1)%16] for i in range(16)]), share, atol=1e-5)
    assert torch.allclose(batch.targets.sum(1), torch.ones(16))

def test_attentive_labels_move_by_attention(batch):
    before = batch.images.clone()
    forms['cutmix_own'].apply(batch)
    pasted = (batch.images!=before)[:, 0]
    share = (pasted & (batch.maps.roll(1, 0)>0)).sum((1, 2))/(batch.maps.roll(1, 0)>0).sum((1, 2))
    assert {round(s, 3) for s in share.tolist()}=={0, .333} and torch.allclose(torch.stack([batch.targets[i, i-1] for i in range(16)]), share)

def test_mixed_labels_are_mixed_images(batch):
    images = batch.images.clone()
    forms['mixup'].apply(batch)
    assert torch.allclose(batch.images[:, 0, 0, 0], batch.targets@images[:, 0, 0, 0], atol=1e-6)

def test_chances_that_depend_on_progress(batch):
    for name,quiet in (('own_rise', 0.), ('own_late', .4)):
        batch.progress,before = quiet,batch.images
        forms[name].apply(batch)
        assert torch.equal(batch.images, before), name

@pytest.mark.parametrize('name', list(forms))
def test_all_numbers_come_from_draw(batch, name, monkeypatch):
    "With the same numbers a form does the same, and torch is not asked for others"
    class Given(Batch):
        def __init__(self, *args):
            super().__init__(*args)
            self.numbers = iter(torch.rand(16, 16, generator=torch.Generator().manual_seed(1)))
        def draw(self): return next(self.numbers)
    given = [Given(batch.images, batch.maps, batch.targets, 3, torch.tensor(.8)) for _ in range(2)]
    def refuse(*args, **kwargs): raise AssertionError('drew by itself')
    for f in ('rand', 'rand_like', 'randint', 'randn', 'randperm'): monkeypatch.setattr(torch, f, refuse)
    for b in given: forms[name].apply(b)
    results = [(b.images, b.targets) for b in given]
    assert all(torch.equal(a, b) for a,b in zip(*results))

@pytest.mark.parametrize('name', list(forms))
def test_on_a_pretended_gpu(name):
    with FakeTensorMode(allow_non_fake_inputs=False):
        b = Batch(torch.rand(8, 1, 48, 48, device='cuda'), torch.zeros(8, 48, 48, dtype=torch.uint8, device='cuda'), torch.rand(8, 7, device='cuda'), 3,
                  torch.rand((), device='cuda'))
        forms[name].apply(b)
        assert b.images.device.type==b.targets.device.type=='cuda' and b.images.shape==(8, 1, 48, 48)

def test_the_loss_takes_both_kinds_of_targets():
    logits,labels = torch.randn(9, 7, requires_grad=True),torch.arange(9)%7
    for kwargs in ({}, dict(label_smoothing=.1)):
        ours,fastais = SoftCrossEntropy(**kwargs),CrossEntropyLossFlat(**kwargs)
        assert ours(logits, labels)==fastais(logits, labels)
        assert torch.allclose(ours(logits, torch.eye(7)[labels]), fastais(logits, labels))
        mixed = .3*torch.eye(7)[labels] + .7*torch.eye(7)[(labels+1)%7]
        assert torch.allclose(ours(logits, mixed), .3*fastais(logits, labels) + .7*fastais(logits, (labels+1)%7))

class Watch(Callback):
    order = FormCallback.order+.1
    def before_fit(self): self.seen = []
    def before_batch(self): self.seen.append((self.training, len(self.xb), self.xb[0].shape, self.yb[0].dtype, self.yb[0].shape))

def fitted(faces, form, dls=None, **kwargs):
    dls = dls or face_block(batch_tfms=[FaceAugment()]).dataloaders(faces, bs=16)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48*48, 7))
    learn = face_learner(dls, model, cbs=[FormCallback(form, **kwargs), Watch()])
    with learn.no_bar(), learn.no_logging(): learn.fit_quick(1)
    return learn

def test_forms_that_mix_train_on_probabilities(faces):
    learn = fitted(faces[:140], 'cutmix')
    train = [s for s in learn.watch.seen if s[0]]
    assert all(s[3]==torch.float32 and s[4]==(16, 7) for s in train) and all(s[3]==torch.int64 for s in learn.watch.seen if not s[0])

def test_two_views_double_the_batch_and_the_loss_asks_for_equal_answers(faces):
    dls = face_block(batch_tfms=[FaceAugment(), DoubleBatch()]).dataloaders(faces[:140], bs=16)
    images,labels = dls.train.one_batch()
    assert len(images)==32 and torch.equal(labels[:16], labels[16:]) and not torch.equal(images[:16], images[16:])
    assert len(dls.valid.one_batch()[0])==len(dls.valid_ds)
    learn = fitted(faces[:140], 'twice_plain', dls)
    assert {s[2][0] for s in learn.watch.seen if s[0]}=={32}
    learn.pred = torch.randn(8, 7, requires_grad=True)
    learn.training,learn.loss_grad = True,torch.zeros(())
    learn.form.after_loss()
    p,q = learn.pred.softmax(1).chunk(2)
    assert learn.loss_grad.item()==pytest.approx((.5*((p-q)*(p/q).log()).sum(1).mean()).item(), rel=1e-4)

def test_every_form_can_be_given_as_a_perturbation(faces):
    dls = face_block(batch_tfms=[FaceAugment()]).dataloaders(faces[:140], bs=16)
    learn = perturb_learner(dls, 'test_resnet', perturb='cutmix_foreign')
    assert learn.recluster.form is forms['cutmix_foreign']
    with learn.no_bar(), learn.no_logging(): learn.fit_quick(1)
    assert (learn.dls.train.data.column('clusters')>0).any()

def test_one_cluster_is_enough_and_a_byte_holds_255():
    assert [FormCallback('own', k).k for k in (1, 255)]==[1, 255]
    for k in (0, 256, 2.5):
        with pytest.raises(ValueError, match='n_clusters is'): FormCallback('own', k)
