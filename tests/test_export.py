"The file computes what the learner computes"
import json

import pytest
import torch
from helpers import Own, colour_dls

from fer_perturb.attention import add_attention
from fer_perturb.backbones import create_backbone
from fer_perturb.ensemble import ensemble_learner
from fer_perturb.export import export_onnx
from fer_perturb.learner import attention_learner, face_learner, perturb_learner

# as the extra `onnx` of settings.ini asks for
new_enough = pytest.mark.skipif(tuple(map(int, torch.__version__.split('.')[:2]))<(2, 7), reason='torch before 2.7 writes ONNX files that are wrong, or none')

@new_enough
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

@new_enough
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
