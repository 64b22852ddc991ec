"The paper's networks learn, alone, as P-models and together; own models and own loaders go through the same functions"
import json

import pytest
import timm
import torch
from fastai.vision.all import DataLoader, DataLoaders, Image, ImageDataLoaders, load_learner
from torch import nn
from torch.utils.data import TensorDataset

from fer_perturb.attention import add_attention, has_attention
from fer_perturb.backbones import ResidualMask, add_masks, backbone_names, create_backbone, map_sizes, multiply_adds
from fer_perturb.ensemble import ensemble_learner, select_weights
from fer_perturb.evaluate import predict_faces
from fer_perturb.export import export_onnx
from fer_perturb.learner import attention_learner, face_learner, perturb_learner
from fer_perturb.loaders import face_block
from fer_perturb.saliency import saliency_maps


def quietly(learn, epochs=1, lr=2e-3):
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, lr)
    return learn

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

@pytest.fixture(scope='module')
def few(faces): return face_block(faces.vocab).dataloaders(faces[torch.arange(0, 420, 7)], bs=8)

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


class Own(nn.Module):
    "A colour model that timm does not know"
    def __init__(self, n_out):
        super().__init__()
        def stage(a, b): return nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU())
        self.one,self.two,self.head = stage(3, 16),stage(16, 32),nn.Linear(32, n_out)
    def forward(self, x): return self.head(self.two(self.one(x)).mean((2, 3)))

def colour_dls(n=36, size=20, classes=3):
    torch.manual_seed(0)
    labels = torch.arange(n)%classes
    images = torch.rand(n, 3, size, size)*.4
    for i,c in enumerate(labels): images[i, c, :, 5:12] += .5
    data = TensorDataset(images, labels)
    dls = DataLoaders(DataLoader(data, bs=12, shuffle=True), DataLoader(data, bs=12))
    dls.c,dls.vocab = classes,list('rgb')[:classes]
    return dls

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


class Sure(nn.Module):
    "Right in `share` of the images, whose first pixel is their label; how sure it is does not depend on it"
    def __init__(self, wrong, scale=4.):
        super().__init__()
        self.wrong,self.scale,self.unused = set(wrong),scale,nn.Parameter(torch.zeros(1))
    def forward(self, x):
        labels = (x[:, 0, 0, 0]*10).round().long()
        told = torch.tensor([(c+1)%7 if c in self.wrong else c for c in labels.tolist()])
        return nn.functional.one_hot(told, 7)*self.scale + self.unused

@pytest.fixture
def told():
    labels = torch.arange(70)%7
    images = (labels/10)[:, None, None, None].expand(-1, 1, 8, 8).contiguous()
    data = TensorDataset(images, labels)
    dls = DataLoaders(DataLoader(data, bs=10), DataLoader(data, bs=10))
    dls.c,dls.vocab = 7,list('abcdefg')
    return dls

def accuracy(learn):
    with learn.no_bar(): p,y = learn.get_preds()
    return (p.argmax(1)==y).float().mean().item()

def test_votes_correct_each_other(told):
    members = [face_learner(told, Sure(wrong)) for wrong in ([0, 1], [2, 3], [4, 5])]
    assert [round(accuracy(m), 3) for m in members]==[round(5/7, 3)]*3
    assert accuracy(ensemble_learner(members))==1.

def test_the_mean_is_of_probabilities(told):
    "A loud poor member does not outvote two good ones"
    members = [face_learner(told, Sure([0])), face_learner(told, Sure([1])), face_learner(told, Sure(range(7), scale=400.))]
    ensemble = ensemble_learner(members)
    with ensemble.no_bar(): p,_ = ensemble.get_preds()
    expected = sum(m.get_preds()[0] for m in members)/3
    assert torch.allclose(p, expected, atol=1e-5) and torch.allclose(p.sum(1), torch.ones(70), atol=1e-5)
    assert accuracy(ensemble)>=5/7
    logits = sum(m.model(told.valid.one_batch()[0]) for m in members)
    assert (logits.argmax(1)==told.valid.one_batch()[1]).float().mean()==0

def test_fitted_weights_are_never_worse_than_the_best(told):
    members = [face_learner(told, Sure(wrong)) for wrong in ([0], range(7), range(1, 7))]
    fitted = ensemble_learner(members, weights='fit')
    assert accuracy(fitted)>=max(accuracy(m) for m in members)
    assert torch.isclose(fitted.model.weights.sum(), torch.tensor(1.)) and fitted.model.weights[1]==0
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        votes = torch.rand(4, 50, 7, generator=generator).softmax(2)
        labels = torch.randint(7, (50,), generator=generator)
        right = lambda p: (p.argmax(1)==labels).float().mean().item()
        weights = torch.tensor(select_weights(votes, labels))
        assert right(torch.einsum('m,mnc->nc', weights, votes))>=max(map(right, votes))-1e-6

def test_an_ensemble_is_a_learner(faces, few, tmp_path):
    p_model,other = quietly(perturb_learner(few)),quietly(attention_learner(few, 'slim_resnet18'))
    for members in ([p_model, other], [other, p_model]):
        ensemble = ensemble_learner(members, weights=[3, 1])
        test = faces[:20]
        expected = sum(w*predict_faces(m, test) for w,m in zip((.75, .25), members))
        assert torch.allclose(predict_faces(ensemble, test), expected, atol=2e-2)
        assert saliency_maps(ensemble.model, test.images[:3, None]).shape==(3, 48, 48)
    ensemble.path = tmp_path
    ensemble.export('e.pkl')
    assert torch.allclose(predict_faces(load_learner(tmp_path/'e.pkl'), test), predict_faces(ensemble, test), atol=1e-2)

def test_ensemble_mistakes(few, told):
    learn = face_learner(few, 'slim_resnet18')
    with pytest.raises(ValueError, match='needs members'): ensemble_learner([])
    with pytest.raises(ValueError, match='for 1 members'): ensemble_learner([learn], [1, 2])
    with pytest.raises(ValueError, match='at least 0'): ensemble_learner([learn], [-1])
    with pytest.raises(ValueError, match="'fit'"): ensemble_learner([learn], 'best')
    with pytest.raises(ValueError, match='disagree on the classes'): ensemble_learner([learn, face_learner(told, Sure([]))])
    with pytest.raises(ValueError, match='views or a stack'): ensemble_learner([perturb_learner(few, attention=add_attention(create_backbone('slim_resnet18')), perturb='stack')])


@pytest.mark.parametrize('kind', ['plain', 'P', 'ensemble'])
def test_onnx_computes_the_same(kind, few, faces, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    learn = face_learner(few, 'slim_resnet18') if kind=='plain' else perturb_learner(few)
    if kind=='ensemble': learn = ensemble_learner([learn, attention_learner(few, 'slim_resnet18')])
    training = learn.model.training
    session = onnxruntime.InferenceSession(export_onnx(learn, tmp_path/'new'/'m.onnx'))
    assert learn.model.training==training
    images = faces.images[:5, None]/255
    with torch.no_grad(): expected = learn.model.eval()(images).softmax(1)
    for n in (5, 1):
        got, = session.run(None, dict(images=images[:n].numpy()))
        assert torch.allclose(torch.from_numpy(got), expected[:n], atol=1e-5)
    assert json.loads(session.get_modelmeta().custom_metadata_map['vocab'])==list(faces.vocab)

def test_onnx_normalizes_as_the_loaders_do(tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    from fastai.vision.all import Normalize, Pipeline, TensorImage
    dls = colour_dls()
    learn = face_learner(dls, Own(3))
    normalize = Normalize.from_stats([.2, .3, .4], [.5, .6, .7], cuda=False)
    dls.valid.after_batch = Pipeline([lambda t: TensorImage(t) if t.ndim==4 else t, normalize])
    images = torch.rand(2, 3, 20, 20)
    got, = onnxruntime.InferenceSession(export_onnx(learn, tmp_path/'m.onnx')).run(None, dict(images=images.numpy()))
    mean,std = (torch.tensor(v)[:, None, None] for v in ([.2, .3, .4], [.5, .6, .7]))
    with torch.no_grad(): assert torch.allclose(torch.from_numpy(got), learn.model.eval()((images-mean)/std).softmax(1), atol=1e-5)

def test_onnx_refusals(few, tmp_path, monkeypatch):
    frozen = add_attention(create_backbone('slim_resnet18'))
    with pytest.raises(ValueError, match='views or a stack'): export_onnx(perturb_learner(few, attention=frozen, views=True), tmp_path/'m.onnx')
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(ImportError, match=r'fer_perturb\[onnx\]'): export_onnx(face_learner(few, 'slim_resnet18'), tmp_path/'m.onnx')
