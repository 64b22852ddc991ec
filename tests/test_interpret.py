"Saliency of any network"
import pytest
import torch
from fastai.vision.all import Normalize
from torch import nn

from fer_perturb.ensemble import ensemble_learner
from fer_perturb.explore import toy_network
from fer_perturb.interpret import figure_1, figure_6, input_saliency, last_maps, one_of_each, saliency_methods
from fer_perturb.learner import attention_learner, face_learner, perturb_learner
from fer_perturb.loaders import face_block
from fer_perturb.saliency import scale_unit

pytest.importorskip('captum')

class Corner(nn.Module):
    "Scores the lower right corner"
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
    def forward(self, x): return torch.stack([self.scale*x[...,36:,36:].square().mean((1,2,3)), 0*x.mean((1,2,3))], 1)

@pytest.mark.parametrize('kind', ['gradient', 'smooth', 'integrated', 'occlusion'])
def test_saliency_finds_what_the_model_sees(faces, kind):
    model = Corner().train()
    maps = input_saliency(model, faces.images[:5], kind, smooth=1, batch_size=2)
    assert maps.shape==(5,48,48) and maps.amin()>=0 and torch.allclose(maps.amax((1,2)), torch.ones(5))
    assert maps[:,38:,38:].mean()>20*maps[:,:30,:30].mean()
    assert model.training and model.scale.grad is None

def test_grad_cam_finds_what_the_model_sees(faces):
    class LowerRight(nn.Module):
        def forward(self, x): return torch.cat([torch.zeros_like(x[...,:9]), torch.cat([0*x[...,:9,9:], x[...,9:,9:]], -2)], -1)
    net = nn.Sequential(nn.AvgPool2d(4), LowerRight(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    nn.init.constant_(net[4].weight, 1.)
    maps = input_saliency(net, faces.images[:5], 'gradcam', torch.zeros(5, dtype=torch.int64), smooth=1)
    assert not maps[:,:32].any() and not maps[...,:32].any() and maps[:,38:,38:].mean()>.2

def test_every_kind_equals_captum(faces):
    from captum.attr import IntegratedGradients, LayerAttribution, LayerGradCam, NoiseTunnel, Occlusion, Saliency
    model,x = toy_network().eval(),faces.images[:3,None]/255
    t = model(x).argmax(1)
    x.requires_grad_()
    own = dict(gradient=Saliency(model).attribute(x, t), integrated=IntegratedGradients(model).attribute(x, .5, t, n_steps=16),
               occlusion=Occlusion(model).attribute(x, (1,6,6), (1,2,2), .5, t),
               gradcam=LayerAttribution.interpolate(LayerGradCam(model, model[3]).attribute(x, t, relu_attributions=True), (48,48), 'bilinear'))
    torch.manual_seed(3)
    own['smooth'] = NoiseTunnel(Saliency(model)).attribute(x, target=t, nt_type='smoothgrad', nt_samples=16, nt_samples_batch_size=4, stdevs=.1)
    assert own.keys()==set(saliency_methods)
    for kind,wanted in own.items():
        torch.manual_seed(3)
        torch.testing.assert_close(input_saliency(model, faces.images[:3], kind, smooth=1), scale_unit(wanted.detach().abs()[:,0]), msg=kind)

def test_gradient_equals_finite_differences():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(3*16, 4)).double()
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model
        def forward(self, x): return self.net(x.double())
    x,step = torch.rand(1, 1, 6, 6),1e-4
    target = Net()(x).argmax(1)
    slopes = torch.zeros(6, 6, dtype=torch.float64)
    for i in range(6):
        for j in range(6):
            moved = x.double().clone(), x.double().clone()
            moved[0][0,0,i,j] += step
            moved[1][0,0,i,j] -= step
            up,down = (model(m)[0,target] for m in moved)
            slopes[i,j] = ((up-down)/(2*step)).abs().item()
    torch.testing.assert_close(input_saliency(Net(), x, 'gradient', smooth=1)[0], scale_unit(slopes[None])[0].float(), atol=1e-4, rtol=1e-4)

def test_a_normalised_learner_is_explained_in_pixels(faces):
    "A network behind Normalize is the same function of pixels as one that has it inside"
    plain = toy_network().eval()
    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = plain
        def forward(self, x): return self.net((x-.4)/.2)
    dls = face_block(batch_tfms=[Normalize.from_stats([.4], [.2], cuda=False)]).dataloaders(faces, bs=16)
    learn = face_learner(dls, plain)
    for kind in ('gradient', 'integrated', 'gradcam', 'occlusion'):
        maps = (input_saliency(m, faces.images[:2], kind, smooth=1) for m in (learn, Inside()))
        torch.testing.assert_close(*maps, msg=kind, atol=1e-4, rtol=1e-3)

@pytest.mark.parametrize('kind', saliency_methods[:4])
def test_every_kind_of_learner_has_a_saliency(few, faces, kind):
    learners = face_learner(few, toy_network()),attention_learner(few, toy_network(), stages=['0','1','2','3'])
    learners += perturb_learner(few, toy_network(), stages=['0','1','2','3']),ensemble_learner(list(learners))
    for learn in learners:
        maps = input_saliency(learn, faces.images[:2], kind)
        assert maps.shape==(2,48,48) and maps.isfinite().all() and not maps.requires_grad

def test_what_has_no_saliency_says_so(few, faces):
    with pytest.raises(ValueError, match='choose one of gradient'): input_saliency(Corner(), faces.images, 'guess')
    with pytest.raises(ValueError, match='convolutional'): input_saliency(nn.Sequential(nn.Flatten(), nn.Linear(48*48, 3)), faces.images[:2], 'gradcam')
    stack = perturb_learner(few, toy_network_of(4), attention_learner(few, toy_network(), stages=['0','1','2','3']), perturb='stack')
    with pytest.raises(ValueError, match='stack of clusters'): input_saliency(stack, faces.images[:2])

def toy_network_of(n_in):
    net = toy_network()
    net[0][0] = nn.Conv2d(n_in, 16, 3, 2, 1, bias=False)
    return net

def test_the_last_maps_are_found_without_leaving_hooks(faces):
    net = toy_network()
    assert last_maps(net, faces.images[:1,None]/255) is net[3]
    assert not any(m._forward_hooks for m in net.modules())

def test_saliency_of_a_chosen_class_and_the_figures(faces):
    model = nn.Sequential(nn.Flatten(), nn.Linear(48*48, 7))
    a,b = (input_saliency(model, faces.images[:4], target=torch.full((4,), t)) for t in (0, 1))
    assert not torch.equal(a, b)
    assert faces.labels[one_of_each(faces)].tolist()==[*range(7)]
    assert len(figure_1(model, model, faces, faces, 'gradient').axes)==4*7 and len(figure_6(model, model, faces, 'gradient').axes)==3*7
