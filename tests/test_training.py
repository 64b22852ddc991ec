"One network from a set of faces: what is kept, and what is refused"
import json

import pytest
import torch
from fastai.vision.all import load_learner

from fer_perturb.answers import answer_photo, explain_answer, face_probabilities, face_saliency
from fer_perturb.checkpoint import Claim
from fer_perturb.data import FERData
from fer_perturb.learner import face_learner, perturb_learner
from fer_perturb.loaders import face_block, face_size
from fer_perturb.toyfaces import draw_faces, toy_faces
from fer_perturb.training import evaluate_model, in_classes_of, train_model


@pytest.fixture(scope='module')
def toys(): return toy_faces(70, seed=3)

def train(toys, folder, **options): return train_model(toys, folder, **dict(form='plain', arch='test_resnet', epochs=1) | options)

def test_a_training_of_other_settings_or_faces_is_refused(toys, tmp_path):
    train(toys, tmp_path)
    for options,said in ((dict(form='p'), "form 'plain', not 'p'"), (dict(seed=1), 'seed 42, not 1'), (dict(epochs=2), 'epochs 1, not 2')):
        with pytest.raises(ValueError, match=said): train(toys, tmp_path, **options)
    with pytest.raises(ValueError, match='other faces'): train(toys.with_columns(images=255-toys.images), tmp_path)
    assert json.loads((tmp_path/'settings.json').read_text())['size']==48

def test_a_training_gives_random_states_back(toys, tmp_path, states_kept): train(toys, tmp_path)

def test_two_processes_do_not_train_the_same(toys, tmp_path):
    claim = Claim(tmp_path/'claim')
    assert claim.take()
    with pytest.raises(ValueError, match='another process'): train(toys, tmp_path)
    claim.release()
    train(toys, tmp_path)
    assert not (tmp_path/'claim').exists()

@pytest.mark.parametrize('form', ['p', 'plain'])
def test_a_model_of_another_size_keeps_it(form, tmp_path):
    labels = torch.arange(70)%7
    large = FERData(draw_faces(labels, seed=2, size=64).images, labels, torch.arange(70)%5//3)
    learn = train(large, tmp_path/'work', form=form)
    learn.export((tmp_path/'model.pkl').resolve())
    again = load_learner(tmp_path/'model.pkl')
    assert face_size(learn)==face_size(again)==64
    a,b = (face_probabilities(one, large.images[:5]).as_subclass(torch.Tensor) for one in (learn, again))
    assert torch.allclose(a, b, atol=1e-5)
    answer = answer_photo(again, draw_faces(labels[:1], seed=9).images[0].numpy()) # 48 pixels
    assert answer.faces.crops.shape==(1,64,64) and len(explain_answer(again, answer).axes)==3

def test_probabilities_are_in_the_order_of_the_models_classes(toys):
    order = toys.vocab[::-1]
    learn = face_learner(face_block(order).dataloaders(toys, bs=16), 'test_resnet')
    with learn.no_bar(): expected = learn.get_preds(dl=learn.dls.test_dl(toys[:4]))[0]
    assert torch.allclose(face_probabilities(learn, toys.images[:4]).as_subclass(torch.Tensor), expected.as_subclass(torch.Tensor), atol=1e-5)
    assert in_classes_of(learn, toys).vocab==order

def test_a_set_may_have_fewer_classes(toys):
    learn = face_learner(face_block(toys.vocab).dataloaders(toys, bs=16), 'test_resnet')
    rows = torch.where((toys.labels==3)|(toys.labels==5))[0]
    two = FERData(toys.images[rows], (toys.labels[rows]==3).long(), torch.ones(len(rows), dtype=torch.long), vocab=('surprise', 'happy'))
    some = toys[rows].with_columns(usage=torch.ones(len(rows), dtype=torch.long))
    assert evaluate_model(learn, two).scores==evaluate_model(learn, some).scores
    with pytest.raises(ValueError, match='no Training images'): evaluate_model(learn, two, 'Training')

def test_saliency_is_the_attention_where_there_is_one(toys):
    pytest.importorskip('captum')
    dls = face_block(toys.vocab).dataloaders(toys, bs=16)
    for learn in (face_learner(dls, 'test_resnet'), perturb_learner(dls, 'test_resnet')):
        maps = face_saliency(learn, toys.images[:3])
        assert maps.shape==(3,48,48) and maps.dtype==torch.uint8 and (maps.flatten(1).amax(1)>200).all()
