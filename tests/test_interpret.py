"Saliency of any network"
import pytest
import torch
from torch import nn

from fer_perturb.interpret import input_saliency, saliency_figure


class Corner(nn.Module):
    "Scores the lower right corner"
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
    def forward(self, x): return torch.stack([self.scale*x[...,36:,36:].square().mean((1,2,3)), 0*x.mean((1,2,3))], 1)

@pytest.mark.parametrize('kind', ['gradient', 'smooth', 'integrated', 'occlusion'])
def test_saliency_finds_what_the_model_sees(faces, kind):
    pytest.importorskip('captum')
    model = Corner().train()
    maps = input_saliency(model, faces.images[:5], kind, smooth=1, batch_size=2)
    assert maps.shape==(5,48,48) and maps.amin()>=0 and torch.allclose(maps.amax((1,2)), torch.ones(5))
    assert maps[:,38:,38:].mean()>20*maps[:,:30,:30].mean()
    assert model.training and model.scale.grad is None

def test_saliency_of_a_chosen_class_and_its_figure(faces):
    pytest.importorskip('captum')
    model = nn.Sequential(nn.Flatten(), nn.Linear(48*48, 3))
    a,b = (input_saliency(model, faces.images[:4], target=torch.full((4,), t)) for t in (0, 1))
    assert not torch.equal(a, b)
    figure = saliency_figure({'one': model, 'two': model}, {'plain': faces.images[:4], 'again': faces.images[:4]}, ['x']*4)
    assert len(figure.axes)==4*6
