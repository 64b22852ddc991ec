"CBAM inside a backbone changes nothing it should not, and its maps leave nothing behind"
import copy
import gc

import pytest
import torch
from torch import nn

from fer_perturb.attention import CBAM, AttendedStage, add_attention, attention_kinds, saliency_maps, scale_unit, watch_stages
from fer_perturb.backbones import create_backbone


def hooks(model): return sum(len(m._forward_hooks) for m in model.modules())

@pytest.fixture
def model(): return add_attention(create_backbone('slim_resnet18'))

@pytest.mark.parametrize('arch', ['slim_resnet18', 'resnet18', 'resnet50'])
@pytest.mark.parametrize('kind', attention_kinds)
def test_shape_maps_and_gradients(arch, kind):
    model = add_attention(create_backbone(arch), kind)
    images = torch.rand(4, 1, 48, 48)
    with watch_stages(model) as stages: out = model(images)
    assert out.shape==(4, 7)
    assert len(stages)==(1 if kind=='input' else 4)
    for stage in stages: assert 0<=stage.gate.min() and stage.gate.max()<=1
    out.square().sum().backward()
    gates = [p for m in model.modules() if isinstance(m, AttendedStage) for p in m.attention.parameters()]
    assert gates and all(p.grad is not None and p.grad.isfinite().all() for p in gates)

def test_open_gates_change_nothing():
    class Open(nn.Module):
        def forward(self, x): return x.new_ones(1)
    plain = create_backbone('slim_resnet18').eval()
    model = add_attention(copy.deepcopy(plain)).eval()
    images = torch.rand(4, 1, 48, 48)
    assert not torch.allclose(plain(images), model(images), atol=1e-6)
    for m in model.modules():
        if isinstance(m, CBAM): m.channel,m.spatial = Open(),Open()
    assert torch.allclose(plain(images), model(images), atol=1e-6)

def test_hooks_are_removed_after_an_error(model):
    with pytest.raises(RuntimeError):
        with watch_stages(model): model(torch.rand(1, 3, 48, 48))
    assert hooks(model)==0
    with pytest.raises(RuntimeError): saliency_maps(model.train(), torch.rand(1, 3, 48, 48))
    assert hooks(model)==0 and model.training

def test_recorded_maps_hold_no_graph(model):
    with watch_stages(model) as stages: out = model(torch.rand(2, 1, 48, 48, requires_grad=True))
    assert out.requires_grad
    assert not any(m.requires_grad for stage in stages for m in stage)
    gc.collect()

def test_copies_and_saved_weights(model, tmp_path):
    images = torch.rand(3, 1, 48, 48)
    model.eval()
    assert torch.equal(copy.deepcopy(model)(images), model(images))
    torch.save(model.state_dict(), tmp_path/'weights.pth')
    other = add_attention(create_backbone('slim_resnet18')).eval()
    other.load_state_dict(torch.load(tmp_path/'weights.pth'))
    assert torch.equal(other(images), model(images))

def test_saliency_does_not_depend_on_batching_or_type(model):
    images = torch.randint(0, 256, (10, 1, 48, 48), dtype=torch.uint8)
    whole = saliency_maps(model, images)
    assert whole.dtype==torch.uint8 and whole.shape==(10, 48, 48)
    assert (saliency_maps(model, images, batch_size=3).int()-whole.int()).abs().max()<=1
    assert (saliency_maps(model, images/255).int()-whole.int()).abs().max()<=1

def test_gate_sees_content_not_position(model):
    "On a constant image every position looks the same, so a gate must not show the frame's border"
    gate = model.eval().layer1.attention.spatial
    flat = gate(torch.ones(1, 64, 24, 24))
    assert flat.max()-flat.min()<1e-5

def test_constant_maps_scale_to_zero(): assert scale_unit(torch.full((2, 4, 4), 3.)).eq(0).all()

def test_mistakes(model):
    with pytest.raises(ValueError, match='attention already'): add_attention(model)
    with pytest.raises(ValueError, match='feature_info'): add_attention(nn.Linear(2, 2))
    with pytest.raises(ValueError, match='use add_attention'): saliency_maps(create_backbone('slim_resnet18'), torch.rand(1, 1, 48, 48))
    with pytest.raises(ValueError, match='did you mean'): create_backbone('resnet19')
