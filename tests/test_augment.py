"Augmentations move and change what they should, and nothing else"
import pytest
import torch
import torch.nn.functional as F
from fastai.vision.all import AffineCoordTfm, aug_transforms, setup_aug_tfms

from fer_perturb.augment import FaceAugment, erase_rectangles, random_affine, warp
from fer_perturb.loaders import TensorFace


def test_flip_and_shift_move_pixels_where_they_should():
    image = torch.zeros(64, 1, 48, 48)
    image[:, :, 10, 4] = 1.
    augment = FaceAugment(max_rotate=0, max_zoom=1., max_shift=0., max_lighting=0.)
    columns = set(augment(TensorFace(image), split_idx=0).flatten(1).argmax(1).tolist())
    assert columns=={10*48+4, 10*48+43}
    assert torch.equal(augment(TensorFace(image), split_idx=1), image)

@pytest.mark.parametrize('mode, padding_mode', [('bilinear', 'reflection'), ('nearest', 'zeros')])
def test_what_comes_in_from_outside(faces, mode, padding_mode):
    images = faces.images[:100, None, :40]/255
    matrices = random_affine(len(images), 'cpu', max_rotate=60., max_shift=.6)
    expected = F.grid_sample(images, F.affine_grid(matrices, images.shape, align_corners=False), mode=mode, padding_mode=padding_mode, align_corners=False)
    moved = warp(images, matrices, mode=mode, padding_mode=padding_mode)
    assert ((moved-expected).abs()>1e-4).float().mean()<1e-4 # nearest: a place halfway between two pixels may go to either

def test_same_statistics_as_fastai(faces):
    "Mean and spread of 4,000 augmentations of one face, pixel by pixel; shifts are ours alone"
    face = TensorFace(faces.images[3].expand(4000, 1, 48, 48)/255)
    ours = FaceAugment(max_shift=0.)(face.clone(), split_idx=0)
    theirs = face.clone()
    for tfm in setup_aug_tfms(aug_transforms(max_rotate=10., max_zoom=1.1, max_warp=0, max_lighting=.2, p_affine=.75, p_lighting=.75)):
        if isinstance(tfm, AffineCoordTfm):
            for draw in tfm.aff_fs:
                if getattr(draw, 'func', draw).__name__=='zoom_mat': draw.keywords.update(draw_x=.5, draw_y=.5)
        theirs = tfm(theirs, split_idx=0)
    ours,theirs = ours.as_subclass(torch.Tensor),theirs.as_subclass(torch.Tensor)
    assert (ours.mean(0)-theirs.mean(0)).abs().max()<.02
    assert (ours.std(0)-theirs.std(0)).abs().max()<.02
    light = [x.mean((1, 2, 3)) for x in (ours, theirs)]
    assert torch.allclose(*(torch.quantile(x, torch.linspace(.05, .95, 10)) for x in light), atol=.01)

def test_erased_area_is_as_asked():
    torch.manual_seed(0)
    image = torch.full((2000, 1, 48, 48), 2.)
    erased = (erase_rectangles(image, p=.5, min_area=.1, max_area=.2)!=2.).float().mean((1, 2, 3)).as_subclass(torch.Tensor)
    hit = erased>0
    assert abs(hit.float().mean()-.5)<.05
    assert .08<erased[hit].min() and erased[hit].max()<.22
    assert abs(erased[hit].mean()-.15)<.01
