"How faces leave in batches"
import warnings

import pytest
import torch
from fastai.vision.all import CrossEntropyLossFlat, Learner, load_learner
from PIL import Image
from torch import nn

from fer_perturb.augment import EraseRandom, FaceAugment
from fer_perturb.data import EMOTIONS
from fer_perturb.loaders import face_block


def test_both_parts_are_needed(faces):
    for usage,missing in (('Training', 'PublicTest'), ('PublicTest', 'Training')):
        with pytest.raises(ValueError, match=f'is marked {missing}'): face_block(faces.vocab).dataloaders(faces.part(usage))

def small_net(): return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(36, 7))

def test_batches_equal_items(faces):
    "The fast path gives what fastai's own item-by-item path gives"
    dls = face_block(clusters=True).dataloaders(faces, bs=16)
    for fast,slow in zip(dls.valid, super(type(dls.valid), dls.valid).__iter__()):
        for a,b in zip(fast, slow):
            assert type(a) is type(b) and a.dtype==b.dtype and torch.equal(a, b)

def test_an_epoch_sees_every_training_image_once(faces):
    dls = face_block().dataloaders(faces, bs=16)
    dl = dls.train.new(drop_last=False)
    seen = torch.cat([(x*255).round().byte()[:, 0] for x,_ in dl]).as_subclass(torch.Tensor)
    train = faces.part('Training')
    assert sorted(i.numpy().tobytes() for i in seen)==sorted(i.numpy().tobytes() for i in train.images)
    orders = [torch.cat([y for _,y in dls.train]).tolist() for _ in range(2)]
    assert orders[0]!=orders[1]
    assert len(orders[0])==len(train)//16*16

def test_validation_is_public_test_in_order_without_augmentation(faces):
    dls = face_block(batch_tfms=[FaceAugment(), EraseRandom(p=1.)]).dataloaders(faces, bs=16)
    images = torch.cat([x for x,_ in dls.valid]).as_subclass(torch.Tensor)
    assert torch.allclose(images[:, 0], faces.part('PublicTest').images/255)

def test_predict_test_dl_and_export(faces, tmp_path):
    dls = face_block(batch_tfms=FaceAugment()).dataloaders(faces, bs=16)
    learn = Learner(dls, small_net(), loss_func=CrossEntropyLossFlat(), path=tmp_path)
    test = faces.part('PrivateTest')
    probabilities,labels = learn.get_preds(dl=dls.test_dl(test, with_labels=True))
    assert torch.equal(labels.as_subclass(torch.Tensor), test.labels)
    Image.fromarray(test[3].image.numpy()).save(tmp_path/'photo.png')
    for item in (tmp_path/'photo.png', str(tmp_path/'photo.png'), test[3], test[3].image.numpy(), Image.open(tmp_path/'photo.png')):
        emotion,_,p = learn.predict(item)
        assert torch.allclose(p, probabilities[3], atol=1e-5)
        assert emotion==EMOTIONS[p.argmax()]
    learn.export('learn.pkl')
    assert (tmp_path/'learn.pkl').stat().st_size<faces.images.nelement()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert torch.allclose(load_learner(tmp_path/'learn.pkl').predict(tmp_path/'photo.png')[2], probabilities[3], atol=1e-5)

def test_show_batch(faces):
    import matplotlib.pyplot as plt
    face_block().dataloaders(faces, bs=16).show_batch(max_n=4)
    assert len([a for a in plt.gcf().axes if a.images])==4
    assert plt.gcf().axes[0].images[0].get_cmap().name=='gray'
    plt.close('all')
