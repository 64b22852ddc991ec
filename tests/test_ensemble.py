"Votes correct each other, and an ensemble is a learner like any other"
import pytest
import torch
from fastai.vision.all import DataLoader, DataLoaders, load_learner
from helpers import quietly
from torch import nn
from torch.utils.data import TensorDataset

from fer_perturb.attention import add_attention
from fer_perturb.backbones import create_backbone
from fer_perturb.ensemble import ensemble_learner, select_weights
from fer_perturb.evaluate import predict_faces
from fer_perturb.learner import attention_learner, face_learner, perturb_learner
from fer_perturb.saliency import saliency_maps


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
