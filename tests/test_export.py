"The file computes what the learner computes"
import json

import pytest
import torch
import torch.nn.functional as F
from fastai.vision.all import CrossEntropyLossFlat, Image, Learner, Normalize, load_learner
from helpers import Own, colour_dls, quietly

from fer_perturb.attention import add_attention
from fer_perturb.backbones import create_backbone
from fer_perturb.ensemble import ensemble_learner
from fer_perturb.data import FERData
from fer_perturb.export import export_onnx
from fer_perturb.learner import attention_learner, face_learner, perturb_learner
from fer_perturb.loaders import face_block
from fer_perturb.toyfaces import toy_faces
from fer_perturb.weights import load_weights, save_weights

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

@pytest.mark.parametrize('size', [48, 64])
@pytest.mark.parametrize('normalize', [False, True])
def test_learner_onnx_and_weights_agree(normalize, size, tmp_path):
    "A P-model's answer for a photo: from the learner, from an exported and loaded one, from ONNX runtime, from safetensors in full and half precision"
    onnxruntime = pytest.importorskip('onnxruntime')
    faces = toy_faces(70, seed=5)
    if size!=48: faces = FERData(F.interpolate(faces.images[:,None].float(), size, mode='bilinear')[:,0].byte(), faces.labels, faces.usage)
    tfms = [Normalize.from_stats([.4], [.2], cuda=False)] if normalize else []
    dls = face_block(batch_tfms=tfms).dataloaders(faces, bs=14, device='cpu')
    phase1 = attention_learner(dls, 'test_resnet')
    learn = perturb_learner(dls, 'test_resnet', attention=phase1)
    quietly(learn)
    Image.fromarray(faces.images[3].numpy()).save(tmp_path/'face.png')
    learn.path = tmp_path
    learn.export('e.pkl')
    loaded = load_learner(tmp_path/'e.pkl')
    assert loaded.recluster.clusterer.model is None and (tmp_path/'e.pkl').stat().st_size<1.3*sum(t.numel()*t.element_size() for t in learn.model.state_dict().values())+40_000
    file = export_onnx(loaded, tmp_path/'m.onnx')
    session = onnxruntime.InferenceSession(file)
    facts = {k: json.loads(v) for k,v in session.get_modelmeta().custom_metadata_map.items()}
    assert facts['size']==[size, size] and facts['vocab']==list(faces.vocab) and facts['mean']==pytest.approx([.4*normalize])
    onnx, = session.run(None, dict(images=(faces.images[3:4, None]/255).numpy()))
    reloaded = load_weights(save_weights(loaded, tmp_path/'w.safetensors'))
    half = load_weights(save_weights(learn, tmp_path/'h.safetensors', half=True))
    def answer(l):
        with l.no_bar(): return l.predict(tmp_path/'face.png')[2]
    expected = answer(learn)
    for name,got,tol in (('loaded', answer(loaded), 1e-4), ('onnx', torch.from_numpy(onnx)[0], 1e-4), ('weights', answer(reloaded), 1e-4),
                         ('half', answer(half), 1e-2)):
        assert torch.allclose(got, expected, atol=tol), name
    with pytest.raises(ValueError, match='without the attention model of phase 1'): quietly_on(loaded, dls)

def quietly_on(learn, dls):
    learn.dls = dls
    quietly(learn)

@pytest.mark.parametrize('build', [lambda dls: face_learner(dls, 'test_vit', n_in=1), lambda dls: attention_learner(dls, 'test_resnet', attention='input'),
                                   lambda dls: perturb_learner(dls, 'test_resnet')], ids=['built for a size', 'gate on the input', 'own attention'])
def test_weights_know_how_to_build_their_network(build, few, tmp_path):
    learn = build(few)
    again = load_weights(save_weights(learn, tmp_path/'w.safetensors'))
    images = torch.rand(3, 1, 48, 48)
    with torch.no_grad(): assert torch.allclose(again.model.eval()(images), learn.model.eval()(images), atol=1e-5)
    again.dls = few
    quietly(again) # goes on with other loaders

def test_weights_of_colour_and_of_own_networks(tmp_path):
    learn = face_learner(colour_dls(), Own(3))
    path = save_weights(learn, tmp_path/'w.safetensors')
    with pytest.raises(ValueError, match='give it as model='): load_weights(path)
    again = load_weights(path, Own(3))
    Image.new('RGB', (50, 40), 'red').save(tmp_path/'red.png')
    with again.no_bar(): assert again.predict(tmp_path/'red.png')[2].shape==(3,)

def test_weights_that_are_none(few, tmp_path):
    with pytest.raises(FileNotFoundError): load_weights(tmp_path/'none.safetensors')
    for content in (b'', b'text', b'\x80\x04pickle'*50):
        (tmp_path/'bad.safetensors').write_bytes(content)
        with pytest.raises(ValueError, match='no whole safetensors file'): load_weights(tmp_path/'bad.safetensors')
    from safetensors.torch import save_file
    save_file({'a': torch.ones(1)}, tmp_path/'other.safetensors')
    with pytest.raises(ValueError, match='does not say how to build'): load_weights(tmp_path/'other.safetensors')
    frozen = add_attention(create_backbone('slim_resnet18'))
    with pytest.raises(ValueError, match='views or a stack'): save_weights(perturb_learner(few, attention=frozen, views=True), tmp_path/'v.safetensors')
    with pytest.raises(ValueError, match='how this network was built'): save_weights(Learner(few, create_backbone('test_resnet'), loss_func=CrossEntropyLossFlat()), tmp_path/'l.safetensors')

def test_onnx_refusals(few, tmp_path, monkeypatch):
    frozen = add_attention(create_backbone('slim_resnet18'))
    with pytest.raises(ValueError, match='views or a stack'): export_onnx(perturb_learner(few, attention=frozen, views=True), tmp_path/'m.onnx')
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(ImportError, match=r'fer_perturb\[onnx\]'): export_onnx(face_learner(few, 'slim_resnet18'), tmp_path/'m.onnx')
