"The paper's networks learn, alone, as P-models and together; own models and own loaders go through the same functions"
import pytest
import timm
import torch
from fastai.vision.all import Image, ImageDataLoaders, load_learner
from helpers import Own, colour_dls, quietly
from torch import nn

from fer_perturb.attention import has_attention
from fer_perturb.backbones import ResidualMask, add_masks, backbone_names, create_backbone, map_sizes, multiply_adds
from fer_perturb.learner import attention_learner, face_learner, perturb_learner
from fer_perturb.loaders import face_block
from fer_perturb.saliency import saliency_maps


def dropped(learn, batch, steps=6):
    "By how much training on one batch lowers its loss, in eval mode"
    images,labels = batch
    optimizer = torch.optim.AdamW(learn.model.parameters(), 1e-3)
    learn.model.train()
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(learn.model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0]-losses[-1]

paper = ['vgg16', 'slim_resnet18', 'densenet121', 'dpn68', 'slim_resmasking']

@pytest.mark.parametrize('arch', paper)
def test_the_papers_networks_learn(arch, few):
    "The loss falls, also with attention inside"
    images,labels = (b.as_subclass(torch.Tensor) for b in few.one_batch())
    assert dropped(face_learner(few, arch), (images, labels))>.3
    assert dropped(attention_learner(few, arch), (images, labels))>.2

@pytest.mark.parametrize('arch', paper)
def test_their_p_models_learn(arch, faces):
    dls = face_block(faces.vocab).dataloaders(faces[torch.arange(0, 420, 14)], bs=12)
    learn = perturb_learner(dls, arch)
    with learn.no_bar(), learn.no_logging(): learn.fit(4, 1e-3)
    per_epoch = torch.tensor(learn.recorder.losses).view(4, -1).mean(1)
    assert per_epoch[-1]<per_epoch[0]-.03
    assert learn.dls.train.data.column('clusters').amax()==3
    assert len(learn.get_preds()[0])==len(dls.valid_ds)

def test_shapes_and_sizes():
    for arch in backbone_names():
        if arch in ('resmasking', 'resmasking_resnet34', 'dpn92'): continue # the large ones differ from a small one in a number only
        model = create_backbone(arch, n_out=5, n_in=2).eval()
        with torch.no_grad(): assert model(torch.rand(2, 2, 48, 48)).shape==(2, 5)
        assert map_sizes(model)==[24, 12, 6, 3], arch

@pytest.mark.parametrize('stride,first', [(1, 48), (2, 24), (4, 12)])
def test_stem_stride(stride, first):
    for arch in ('slim_resnet18', 'dpn68', 'densenet121'): assert map_sizes(create_backbone(arch, stem_stride=stride))[0]==first

def test_vgg_strides_save_arithmetic():
    image = torch.zeros(1, 1, 48, 48)
    costs = [multiply_adds(create_backbone('vgg16', stem_stride=s), image) for s in (1, 2, 4)]
    with torch.device('meta'): original = multiply_adds(timm.create_model('vgg16_bn', in_chans=1, num_classes=7), torch.zeros(1, 1, 48, 48))
    assert original>costs[0]>3*costs[1]>costs[2]
    assert map_sizes(create_backbone('vgg16', stem_stride=1))==[24, 12, 6, 3]

def test_multiply_adds_of_one_convolution():
    "3×3 kernel, 2 to 5 channels, 8×8 positions"
    assert multiply_adds(nn.Conv2d(2, 5, 3, padding=1), torch.zeros(1, 2, 8, 8))==3*3*2*5*64

def test_resmasking_is_the_published_network():
    "137.8 million parameters, as many as the published weights (551.6 MB); counted without allocating them"
    with torch.device('meta'): model = add_masks(timm.create_model('resnet34', num_classes=7))
    size = sum(v.numel()*v.element_size() for v in model.state_dict().values())
    assert abs(size-551_634_217)<.001*size

def test_masks_fit_any_size_and_only_stress():
    mask = ResidualMask(8, depth=4).eval()
    for size in ((24, 24), (20, 20), (13, 17), (8, 8)):
        x = torch.rand(2, 8, *size)
        with torch.no_grad(): out,m = mask(x),mask.mask(x)
        assert out.shape==x.shape and (out>=x).all() and torch.allclose(m.sum(1), torch.ones(2, *size), atol=1e-5)

def test_ten_crops_go_through_resmasking():
    with torch.no_grad(): assert create_backbone('slim_resmasking').eval()(torch.rand(2, 1, 40, 40)).shape==(2, 7)

@pytest.mark.parametrize('arch', ['resnet18', 'densenet121', 'dpn68'])
def test_weights_from_a_file(arch, tmp_path):
    colour = timm.create_model(arch)
    torch.save(colour.state_dict(), tmp_path/'weights.pth')
    gray,source = create_backbone(arch, pretrained=tmp_path/'weights.pth'),colour.state_dict()
    first,*_,classes = [k for k in gray.state_dict() if k.endswith('.weight') and gray.state_dict()[k].ndim>1]
    for name,value in gray.state_dict().items():
        if name==first:
            edge = source[first].shape[-1]//2 - 1
            assert torch.allclose(value, source[first][..., edge:edge+3, edge:edge+3].sum(1, keepdim=True), atol=1e-6)
        elif name.startswith(classes.rpartition('.')[0]): assert value.shape[0]==7
        else: assert torch.equal(value, source[name]), name

def test_weights_that_cannot_be_had(tmp_path, monkeypatch, few):
    torch.save(timm.create_model('resnet18').state_dict(), tmp_path/'weights.pth')
    with pytest.raises(ValueError, match='do not fit'): create_backbone('resnet34', pretrained=tmp_path/'weights.pth')
    with pytest.raises(FileNotFoundError, match='no weights at'): create_backbone('resnet18', pretrained=tmp_path/'none.pth')
    with pytest.raises(ValueError, match='slim_resnet18 is narrower'): create_backbone('slim_resnet18', pretrained=True)
    with pytest.raises(ValueError, match='choose 1, 2 or 4'): create_backbone('resnet18', stem_stride=3)
    def no_network(*args, **kwargs): raise OSError('Name or service not known')
    monkeypatch.setattr(timm, 'create_model', no_network)
    with pytest.raises(ConnectionError, match='from scratch'): face_learner(few, 'resnet18', pretrained=True)

def test_own_model_and_tensor_loaders():
    dls = colour_dls()
    phase1 = quietly(attention_learner(dls, Own(3), stages=['one', 'two']), 2, 1e-2)
    assert has_attention(phase1.model)
    for attention,kwargs in ((phase1, {}), ('self', dict(stages=['one', 'two']))):
        learn = quietly(perturb_learner(dls, Own(3), attention=attention, **kwargs), 8, 2e-2)
        assert learn.recorder.values[-1][1]<1., attention
    views = quietly(perturb_learner(dls, Own(3), attention=phase1, perturb='views', views=True))
    assert views.get_preds()[0].shape==(36, 3)

@pytest.mark.parametrize('size', [32, 56])
def test_colour_image_files(tmp_path, size):
    "A folder of colour images of another size and with three classes, and fastai's own transforms"
    from fastai.vision.all import Resize, aug_transforms
    torch.manual_seed(0)
    for c,name in enumerate(('red', 'green', 'blue')):
        (tmp_path/name).mkdir()
        for i in range(10):
            pixels = (torch.rand(60, 60, 3)*90).byte()
            pixels[20:40, 20:40, c] += 150
            Image.fromarray(pixels.numpy()).save(tmp_path/name/f'{i}.png')
    dls = ImageDataLoaders.from_folder(tmp_path, valid_pct=.3, seed=1, item_tfms=Resize(size), batch_tfms=aug_transforms(size=size), bs=7, num_workers=0)
    phase1 = quietly(attention_learner(dls, 'slim_resnet18'))
    learn = quietly(perturb_learner(dls, 'slim_resnet18', attention=phase1))
    images = dls.valid.one_batch()[0]
    assert saliency_maps(learn.recluster.clusterer.model, images).shape==(len(images), size, size)
    learn.path = tmp_path
    learn.export('p.pkl')
    assert load_learner(tmp_path/'p.pkl').predict(tmp_path/'red'/'0.png')[2].shape==(3,)
