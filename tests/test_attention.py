"CBAM inside a backbone changes nothing it should not, and its maps leave nothing behind"
import copy
import gc

import pytest
import timm
import torch
from torch import nn

from fer_perturb.attention import CBAM, AttendedStage, add_attention, attention_kinds, has_attention, watch_stages
from fer_perturb.backbones import create_backbone, example_image
from fer_perturb.saliency import saliency_maps


@pytest.fixture
def model(): return add_attention(create_backbone('slim_resnet18'))

def hooks(model): return sum(len(m._forward_hooks) for m in model.modules())

class Open(nn.Module):
    "A gate forced to one"
    def forward(self, x): return x.new_ones(1)

def open_gates(model):
    for m in model.modules():
        if isinstance(m, CBAM): m.channel,m.spatial = Open(),Open()
    return model

# a small member of each family; after a colon the size of its images in pixels, where it is not 64
families = """vgg11:48 resnet18 resnext26ts regnetx_002 efficientnet_lite0 mobilenetv3_small_050 convnext_atto densenet121 dpn48b inception_v3:96 res2net50_14w_8s
hrnet_w18_small cspresnet50 darknet17 dla46_c ghostnet_050 legacy_seresnet18 xception41 legacy_xception repvgg_a0 nfnet_l0 edgenext_xx_small fastvit_t8 mobileone_s0 resnest14d
skresnet18 selecsls42 ese_vovnet19b_dw mobilevit_xxs pvt_v2_b0 poolformer_s12 mambaout_femto tiny_vit_5m_224 hgnetv2_b0 repvit_m0_9 rexnet_100""".split()

@pytest.mark.parametrize('family', families)
def test_every_family(family):
    arch,_,size = family.partition(':')
    narrow = dict(mlp_ratio=.01) if arch.startswith('vgg') else {}
    plain = timm.create_model(arch, in_chans=1, num_classes=7, **narrow).eval()
    images = torch.rand(2, 1, *[int(size or 64)]*2)
    attended = add_attention(copy.deepcopy(plain), image=images)
    with torch.no_grad(): torch.testing.assert_close(open_gates(copy.deepcopy(attended))(images), plain(images), atol=1e-6, rtol=1e-6)

    names = [n for n,m in attended.named_modules() if isinstance(m, AttendedStage)]
    assert 1<=len(names)<=6
    saliency = saliency_maps(attended, images)
    assert saliency.shape==images[:, 0].shape and saliency.dtype==torch.uint8
    with watch_stages(attended.train()) as stages: out = attended(images)
    assert out.shape==(2, 7) and len(stages)==len(names)
    for stage in stages: assert stage.gate.shape==stage.features[:, 0].shape and 0<=stage.gate.min() and stage.gate.max()<=1
    out.square().sum().backward()
    for name in names:
        grads = [p.grad for p in attended.get_submodule(name).attention.parameters()]
        assert all(g is not None and g.isfinite().all() for g in grads), name
        assert any(g.abs().max()>0 for g in grads), name

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
    plain = create_backbone('slim_resnet18').eval()
    model = add_attention(copy.deepcopy(plain)).eval()
    images = torch.rand(4, 1, 48, 48)
    assert not torch.allclose(plain(images), model(images), atol=1e-6)
    assert torch.allclose(plain(images), open_gates(model)(images), atol=1e-6)

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

def test_gate_sees_content_not_position(model):
    "On a constant image every position looks the same, so a gate must not show the frame's border"
    gate = model.eval().layer1.attention.spatial
    flat = gate(torch.ones(1, 64, 24, 24))
    assert flat.max()-flat.min()<1e-5

class TwoPaths(nn.Module):
    "Gives a tuple of two maps of one size and a smaller one, as dual-path and high-resolution networks do"
    def __init__(self):
        super().__init__()
        self.paths = nn.ModuleList([nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 5, 3, stride=2, padding=1)])
    def forward(self, x, scale=1.): return tuple(path(x)*scale for path in self.paths)

class DualPath(nn.Module):
    def __init__(self):
        super().__init__()
        self.stage,self.head = TwoPaths(),nn.Linear(15, 7)
    def forward(self, x): return self.head(torch.cat([m.mean((2, 3)) for m in self.stage(x, scale=2.)], 1))

def test_maps_of_one_size_share_a_gate():
    model = add_attention(DualPath(), stages=['stage']).eval()
    x = torch.rand(2, 1, 24, 24)
    plain,gated = model.stage.stage(x),model.stage(x)
    assert isinstance(gated, tuple) and [g.shape for g in gated]==[p.shape for p in plain]
    assert torch.equal(torch.cat(gated[:2], 1), model.stage.attention(torch.cat(plain[:2], 1)))
    assert torch.equal(gated[2], plain[2])
    assert model(x).shape==(2, 7)

def test_channels_last_maps_are_turned():
    model = timm.create_model('mambaout_femto', in_chans=1)
    stage = add_attention(model).stages[0]
    assert stage.channels_last and stage.attention.channel.mlp[0].in_features==48

@pytest.mark.parametrize('arch', ['slim_resnet18', 'dpn48b'])
def test_export_keeps_attention(arch):
    model = add_attention(create_backbone(arch)).eval()
    images = torch.rand(2, 1, 48, 48)
    program = torch.export.export(model, (images,)).module()
    with torch.no_grad(): assert torch.allclose(program(images), model(images), atol=1e-5)

def test_compile(model):
    images = torch.rand(4, 1, 48, 48)
    model.eval()
    compiled = torch.compile(model, backend='aot_eager', fullgraph=True)
    assert torch.allclose(compiled(images), model(images), atol=1e-5)

class Mine(nn.Module):
    "A model that reports nothing, of colour images"
    def __init__(self, n_out=3):
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.ReLU())
        self.block = nn.ModuleDict(dict(coarse=nn.Sequential(nn.Conv2d(12, 20, 3, stride=2, padding=1), nn.ReLU())))
        self.head = nn.Linear(20, n_out)
    def forward(self, x): return self.head(self.block['coarse'](self.fine(x)).mean((2, 3)))

def test_own_model_with_named_stages():
    plain,images = Mine().train(),torch.rand(2, 3, 30, 34)
    model = add_attention(copy.deepcopy(plain), stages=['fine', 'block.coarse'])
    assert model.training and hooks(model)==0 and has_attention(model)
    assert [m.attention.channel.mlp[0].in_features for m in model.modules() if isinstance(m, AttendedStage)]==[12, 20]
    assert saliency_maps(model, images).shape==(2, 30, 34)
    assert torch.allclose(open_gates(model)(images), plain(images), atol=1e-6)
    assert example_image(plain).shape==(1, 3, 48, 48)

def test_stages_inside_stages():
    model = add_attention(Mine(), stages=['fine.0', 'fine', 'block.coarse'])
    assert sum(isinstance(m, AttendedStage) for m in model.modules())==3
    assert model(torch.rand(2, 3, 32, 32)).shape==(2, 3)

def test_a_dry_pass_changes_no_statistics():
    plain = create_backbone('slim_resnet18').train()
    before = {k: v.clone() for k,v in plain.state_dict().items()}
    model = add_attention(plain)
    after = {k.replace('.stage.', '.'): v for k,v in model.state_dict().items() if '.attention.' not in k}
    assert before.keys()==after.keys() and all(torch.equal(before[k], after[k]) for k in before)

@pytest.mark.parametrize('arch,reason', [('vit_tiny_patch16_224', 'no map'), ('levit_128s', 'no map'), ('twins_svt_small', 'does not report its stages'),
                                         # older versions of timm do not report the stages of these two
                                         ('crossvit_tiny_240', 'runs 2 times|does not report its stages'), ('coat_lite_tiny', 'runs 0 times|does not report its stages')])
def test_refused_with_a_reason(arch, reason):
    model = timm.create_model(arch)
    with pytest.raises(ValueError, match=reason): add_attention(model)
    assert not has_attention(model) and hooks(model)==0

def test_mistakes(model):
    with pytest.raises(ValueError, match="has no module 'layer9'"): add_attention(create_backbone('slim_resnet18'), stages=['layer1', 'layer9'])
    with pytest.raises(ValueError, match='give an example image'): add_attention(create_backbone('slim_resnet18'), image=torch.rand(1, 3, 48, 48))
    with pytest.raises(ValueError, match='no convolution'): add_attention(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), stages=['0'])
    with pytest.raises(ValueError, match='attention already'): add_attention(model)
    with pytest.raises(ValueError, match='feature_info'): add_attention(nn.Linear(2, 2))
    with pytest.raises(ValueError, match='use add_attention'): saliency_maps(create_backbone('slim_resnet18'), torch.rand(1, 1, 48, 48))
    with pytest.raises(ValueError, match='did you mean'): create_backbone('resnet19')
