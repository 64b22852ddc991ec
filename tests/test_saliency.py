"One map for each image, whatever the batch"
import pytest
import torch

from fer_perturb.attention import add_attention
from fer_perturb.backbones import create_backbone
from fer_perturb.saliency import saliency_maps, scale_unit


@pytest.fixture
def model(): return add_attention(create_backbone('slim_resnet18'))

def test_saliency_does_not_depend_on_batching_or_type(model):
    images = torch.randint(0, 256, (10, 1, 48, 48), dtype=torch.uint8)
    whole = saliency_maps(model, images)
    assert whole.dtype==torch.uint8 and whole.shape==(10, 48, 48)
    assert (saliency_maps(model, images, batch_size=3).int()-whole.int()).abs().max()<=1
    assert (saliency_maps(model, images/255).int()-whole.int()).abs().max()<=1

def test_constant_maps_scale_to_zero(): assert scale_unit(torch.full((2, 4, 4), 3.)).eq(0).all()
