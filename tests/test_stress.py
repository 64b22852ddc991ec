"Numbers that are none, rates that explode, sets that are odd: a sentence or a number, never NaN without a word"
import warnings

import pytest
import torch
from fastai.vision.all import CrossEntropyLossFlat, DataLoader, DataLoaders
from helpers import Net
from torch import nn
from torch.utils.data import TensorDataset

from fer_perturb.evaluate import predict_faces
from fer_perturb.learner import adamw, face_learner, perturb_learner, sgd
from fer_perturb.loaders import face_block


class Constant(nn.Module):
    def saliency_maps(self, images, *args): return torch.zeros_like(images[:, 0]).byte()

def loaders(faces, bs=16): return face_block(faces.vocab).dataloaders(faces, bs=bs, device='cpu')
def quietly(learn, f):
    with learn.no_bar(), learn.no_logging(): f(learn)
    return learn.recorder.values[-1]

def spoil(learn):
    with torch.no_grad(): learn.model.head[2].weight[0, 0] = float('nan')
    return learn

@pytest.mark.parametrize('ask', [lambda l, faces: l.predict(faces[0]), lambda l, faces: l.validate(), lambda l, faces: l.get_preds(), lambda l, faces: predict_faces(l, faces[:4]), lambda l, faces: l.tta()])
def test_a_network_without_numbers_does_not_answer(faces, ask):
    learn = spoil(face_learner(loaders(faces[:70]), Net()))
    with learn.no_bar(), learn.no_logging(), pytest.raises(ValueError, match='its weights hold NaN'): ask(learn, faces)

@pytest.mark.parametrize('fit', [lambda l, lr: l.fit(2, lr), lambda l, lr: l.fit_one_cycle(2, lr), lambda l, lr: l.fit_quick(2, lr), lambda l, lr: l.fit_quick(2, lr, opt_func=sgd),
                                 lambda l, lr: l.fit_quick(2, lr, opt_func=adamw), lambda l, lr: l.fit_paper(2, lr)])
def test_a_rate_that_is_too_high_is_said_in_its_epoch(faces, fit):
    learn = face_learner(loaders(faces[:140]), Net())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        try: quietly(learn, lambda l: fit(l, 1e4))
        except ValueError as e: said = [e]
        else: said = [w.message for w in said]
    assert any(('epoch 1 of 2' in str(s) and 'too high' in str(s) and 'lr_find' in str(s)) for s in said), said
    for lr in (float('nan'), -1., float('inf')):
        with pytest.raises(ValueError, match='learning rate is'): quietly(learn, lambda l: fit(l, lr))

def test_an_ordinary_training_says_nothing(faces):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        quietly(face_learner(loaders(faces[:140]), Net()), lambda l: l.fit_quick(2))
    assert not [s for s in said if 'loss' in str(s.message)]

def tensors(x):
    data = TensorDataset(x, torch.arange(len(x))%7)
    dls = DataLoaders(DataLoader(data, bs=8, shuffle=True), DataLoader(data, bs=8))
    dls.c,dls.vocab = 7,list('abcdefg')
    return dls

@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('make', [lambda dls: face_learner(dls, Net()), lambda dls: perturb_learner(dls, 'test_resnet')])
def test_images_without_numbers_are_the_reason(value, make):
    images = torch.rand(32, 1, 48, 48)
    learn = make(tensors(images))
    images[9, 0, 4, 4] = value
    with pytest.raises(ValueError, match='NaN or infinite pixels'): quietly(learn, lambda l: l.fit(1, 1e-3))
    fresh = make(tensors(torch.rand(32, 1, 48, 48)))
    with fresh.no_bar(), fresh.no_logging(), pytest.raises(ValueError, match='NaN or infinite pixels'): fresh.validate(dl=tensors(images).valid)

@pytest.mark.parametrize('settings', [{}, dict(feature='attention'), dict(one_map=True), dict(perturb='views', views=True), dict(n_clusters=40)])
@pytest.mark.parametrize('black', [True, False])
def test_nothing_to_see(faces, settings, black):
    "Black images, and attention that is the same everywhere"
    some = faces[:140].with_columns(images=torch.zeros_like(faces[:140].images)) if black else faces[:140]
    learn = perturb_learner(loaders(some), Net(), Constant(), **settings)
    assert all(torch.tensor(float(v)).isfinite() for v in quietly(learn, lambda l: l.fit_quick(2)))
    maps = learn.dls.train.data.column('clusters')
    assert ((maps>0).float().mean()-.3).abs()<.001 and maps.max()<=learn.recluster.clusterer.n_clusters

@pytest.mark.parametrize('bs', [1, 2, 16])
def test_a_last_batch_of_one_and_one_class_in_validation(faces, bs):
    usage = torch.zeros(60, dtype=torch.int64)
    usage[torch.where(faces.labels[:60]==3)[0][:min(bs+1, 4)]] = 1
    learn = perturb_learner(loaders(faces[:60].with_columns(usage=usage), bs), 'test_resnet')
    assert all(torch.tensor(float(v)).isfinite() for v in quietly(learn, lambda l: l.fit_quick(1)))

def test_a_batch_larger_than_the_set(faces):
    with pytest.raises(ValueError, match='make no batch of 512: give bs=336 or less'): face_learner(loaders(faces, 512), Net())

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_networks_predict(faces, dtype):
    learn = face_learner(loaders(faces[:70]), Net())
    whole = learn.predict(faces[0])[2]
    learn.model.to(dtype)
    with learn.no_bar(): assert torch.allclose(learn.predict(faces[0])[2].float(), whole, atol=.02)

def test_a_class_that_weighs_nothing(faces):
    learn = face_learner(loaders(faces[:140]), Net(), loss_func=CrossEntropyLossFlat(weight=torch.tensor([0., 1, 2, 3, 4, 5, 6])))
    assert all(torch.tensor(float(v)).isfinite() for v in quietly(learn, lambda l: l.fit_quick(1)))
