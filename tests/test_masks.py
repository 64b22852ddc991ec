"Masks and other things that hide a part of the face: where they sit, what they leave alone, what is said when they cannot be placed"
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from fer_perturb import masks
from fer_perturb.cli import main
from fer_perturb.data import USAGES, FERData
from fer_perturb.loaders import face_block
from fer_perturb.masks import (MASKS, OCCLUSIONS, apply_homography, covered_share, eye_points, homography,
                               image_numbers, key_points, maskfer, occlude, occlude_images, place_mask,
                               write_kaggle)
from fer_perturb.readers import load_faces, save_faces
from fer_perturb.toyfaces import draw_faces


@pytest.fixture(scope='module')
def toys(): return draw_faces(torch.arange(140)%7, seed=11)

def turned(landmarks, degrees):
    "Landmarks whose nose points to the image's right by so many degrees: root and tip are moved, the rest stays"
    res = landmarks.clone()
    length = (res[:,30]-res[:,27]).norm(dim=-1)
    lip = res[:,masks.lower_lip].mean(1) - res[:,27]
    angle = torch.atan2(lip[:,1], lip[:,0]) - np.radians(degrees)
    res[:,30] = res[:,27] + length[:,None]*torch.stack([angle.cos(), angle.sin()], -1)
    return res


def test_a_homography_is_recovered_from_six_points():
    generator = torch.Generator().manual_seed(0)
    true = torch.eye(3).double() + .1*torch.rand(50, 3, 3, generator=generator).double()
    true /= true[:,2:,2:].clone()
    points = torch.rand(50, 6, 2, generator=generator).double()
    assert torch.allclose(homography(points, apply_homography(true, points)[0]), true, atol=1e-6)

def test_key_points_lie_on_the_jaw_and_below_the_eyes(toys):
    points = key_points(toys.landmarks).points
    jaw = toys.landmarks[:,:17].double()
    steps = jaw[:,:-1,None] + torch.linspace(0, 1, 50).double()[:,None]*(jaw[:,1:]-jaw[:,:-1])[:,:,None]
    distance = torch.cdist(points[:,[0,2,3,5]], steps.flatten(1, 2)).amin(-1)
    assert distance.max()<.2
    eyes = toys.landmarks[:,36:48,1].mean(1)
    assert (points[:,:,1]>eyes[:,None]-1).all() and (points[:,4,1]>points[:,1,1]).all()

@pytest.mark.parametrize('degrees', [20, -20])
def test_turned_heads_get_the_side_view_and_the_mirrored_one(toys, degrees):
    faces = turned(toys.landmarks, degrees)
    assert torch.allclose(key_points(faces).turn, torch.full((140,), float(degrees)).double(), atol=.1)
    place = place_mask(faces)
    assert place.side.float().mean()>.9 and (place.mirrored==(place.side & (degrees<0))).all()

@pytest.mark.parametrize('kind', [*MASKS, 'mixed'])
def test_masks_cover_mouths_and_leave_eyes_and_brows_free(toys, kind):
    covered = occlude_images(toys.images, toys.landmarks, kind).covered
    assert covered_share(covered, toys.landmarks)>.97
    assert covered_share(covered, toys.landmarks, eye_points)<.03

def test_occlusions_cover_what_they_say(toys):
    glasses,half,hand = (occlude_images(toys.images, toys.landmarks, w).covered for w in ('sunglasses', 'half', 'hand'))
    assert covered_share(glasses, toys.landmarks, tuple(range(36, 48)))>.99 and covered_share(glasses, toys.landmarks)<.01
    left,right = (covered_share(half[i:i+1], toys.landmarks[i:i+1], tuple(range(36, 42))) for i in (0, 1)),None
    assert all(s in (0., 1.) for s in left)
    assert .3<(half>127).float().mean()<.7
    area = (hand>127).float().mean((1, 2))
    assert area.median()>.04 and area.max()<.4

@pytest.mark.parametrize('what', OCCLUSIONS)
def test_pixels_outside_stay_and_the_same_image_gets_the_same_thing(toys, what):
    images,landmarks = toys.images[:20],toys.landmarks[:20]
    res = occlude_images(images, landmarks, what)
    assert torch.equal(res.images[res.covered==0], images[res.covered==0])
    assert (res.images[res.covered==255]!=images[res.covered==255]).float().mean()>.5
    order = torch.randperm(20)
    again = occlude_images(images[order], landmarks[order], what)
    assert torch.equal(again.images, res.images[order])
    other = occlude_images(images, landmarks, what, seed=1)
    assert not torch.equal(other.images, res.images)

def test_edges_are_smooth(toys):
    alpha = occlude_images(toys.images, toys.landmarks).covered
    assert ((alpha>0)&(alpha<255)).flatten(1).any(1).all()

def test_any_size_of_image(toys):
    big = occlude_images(toys.images[:14].repeat_interleave(2, 1).repeat_interleave(2, 2), toys.landmarks[:14]*2+.5)
    small = occlude_images(toys.images[:14], toys.landmarks[:14])
    a,b = big.covered[:,::2,::2]>127,small.covered>127
    assert ((a&b).sum()/(a|b).sum())>.9
    wide = torch.cat([toys.images[:5], toys.images[:5]], 2)
    assert occlude_images(wide, toys.landmarks[:5]).covered[:,:,60:].sum()==0

def test_numbers_are_spread_and_depend_on_every_pixel(toys):
    numbers = image_numbers(toys.images)
    assert numbers.min()>=0 and numbers.max()<1 and abs(numbers.mean()-.5)<.05
    changed = toys.images.clone()
    changed[:,0,0] ^= 1
    assert (image_numbers(changed)!=numbers).all()

@pytest.mark.parametrize('spoil,message', [
    (lambda l: l.index_fill(1, torch.tensor(3), float('nan')), 'NaN or infinite in 5 of 5'), (lambda l: l-200, 'outside the 48×48 image'),
    (lambda l: l*torch.tensor([1., 0.])+20, 'not shaped like a face'), (lambda l: l[:,:20], 'the 68 points'), (lambda l: l[:3], 'give \\(5, 68, 2\\)')])
def test_bad_landmarks_are_named(toys, spoil, message):
    with pytest.raises(ValueError, match=message): occlude_images(toys.images[:5], spoil(toys.landmarks[:5]))

def test_faces_partly_outside_and_folded_faces_get_a_mask(toys):
    outside = toys.landmarks[:5] + torch.tensor([14., 6.])
    assert (occlude_images(toys.images[:5], outside).covered>127).flatten(1).any(1).all()
    folded = toys.landmarks[:5].clone()
    folded[:,:17] = folded[:,:17].flip(1)
    assert place_mask(folded).refit.all()
    covered = occlude_images(toys.images[:5], folded).covered
    assert covered_share(covered, toys.landmarks[:5])>.8

def test_maskfer_keeps_everything_else(faces):
    masked = maskfer(faces, draw_faces(torch.arange(420)%7, seed=5).landmarks)
    assert (masked.names==faces.names).all() and torch.equal(masked.labels, faces.labels) and torch.equal(masked.usage, faces.usage)
    assert torch.equal(masked.regions, faces.regions) and masked.vocab==faces.vocab
    part = masked.part('PrivateTest')
    assert torch.equal(part.column('covered'), masked.column('covered')[masked.usage==2])
    assert face_block().dataloaders(masked, bs=8).one_batch()[0].shape==(8,1,48,48)
    with pytest.raises(ValueError, match='choose one of surgical'): maskfer(faces, kind='sunglasses')
    with pytest.raises(ValueError, match='nothing is called'): occlude(faces, 'veil')

def test_a_part_is_masked_like_the_whole(faces):
    landmarks = draw_faces(torch.arange(420)%7, seed=5).landmarks
    rows = torch.tensor([5, 300, 17])
    assert torch.equal(maskfer(faces[rows], landmarks[rows], 'mixed').images, maskfer(faces, landmarks, 'mixed')[rows].images)

def test_command_writes_kaggles_layout_and_refuses_to_overwrite(faces, tmp_path, capsys):
    save_faces(faces[:70], tmp_path/'faces.npz')
    pytest.importorskip('dlib')
    assert main(['mask', str(tmp_path/'faces.npz'), str(tmp_path/'out'), '--kind', 'mixed'])==0
    back = load_faces(tmp_path/'out')
    assert [len(back.part(u)) for u in USAGES]==[len(faces[:70].part(u)) for u in USAGES]
    before = {f: f.stat().st_mtime_ns for f in (tmp_path/'out').rglob('*')}
    assert main(['mask', str(tmp_path/'faces.npz'), str(tmp_path/'out')])==2
    assert 'exists' in capsys.readouterr().err
    assert before=={f: f.stat().st_mtime_ns for f in (tmp_path/'out').rglob('*')}
    assert main(['mask', str(tmp_path/'faces.npz'), str(tmp_path/'new'), '--kind', 'veil'])==2
    assert not list(tmp_path.glob('.*')) and not (tmp_path/'new').exists()

def test_a_failed_write_leaves_nothing(faces, tmp_path, monkeypatch):
    save,count = Image.Image.save,[]
    def failing(self, *args, **kwargs):
        count.append(1)
        if len(count)>10: raise OSError('disk full')
        return save(self, *args, **kwargs)
    monkeypatch.setattr(Image.Image, 'save', failing)
    with pytest.raises(OSError, match='disk full'): write_kaggle(faces, tmp_path/'out')
    assert not list(tmp_path.iterdir())

def test_kaggles_names_stay_and_doubles_are_refused(faces, tmp_path):
    few = FERData(faces.images[:3], faces.labels[:3], [0,1,2], ['train/angry/Training_3908.jpg', 'test/x/PublicTest_7.jpg', 'mine.png'])
    write_kaggle(few, tmp_path/'out')
    names = {f.relative_to(tmp_path/'out').as_posix() for f in (tmp_path/'out').rglob('*.png')}
    assert names=={f'train/{few[0].label}/Training_3908.png', f'test/{few[1].label}/PublicTest_7.png', f'test/{few[2].label}/PrivateTest_mine.png'}
    twice = FERData(faces.images[:2], [0,0], names=['a/1.png', 'b/1.png'])
    with pytest.raises(ValueError, match='would be written twice'): write_kaggle(twice, tmp_path/'twice')

def test_a_set_with_a_folder_for_each_person_gets_masks(faces, tmp_path):
    people = FERData(faces.images[:8], faces.labels[:8], names=[f'{p}/{i}.png' for p in ('anna', 'ben') for i in range(4)])
    save_faces(people, tmp_path/'people.npz')
    assert main(['mask', str(tmp_path/'people.npz'), str(tmp_path/'out')])==0 and len(list((tmp_path/'out').rglob('*.png')))==8

def test_a_masked_set_has_the_size_that_is_asked_for(faces, tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        write_kaggle(faces[:140], tmp_path/'faces')
        assert main(['mask', str(tmp_path/'faces'), str(tmp_path/'large'), '--size', '96'])==0
        assert load_faces(tmp_path/'large', 96).images.shape==(140, 96, 96)
        save_faces(faces[:140], tmp_path/'faces.npz')
        assert main(['mask', str(tmp_path/'faces.npz'), str(tmp_path/'none'), '--size', '96'])==2
    assert '48×48 pixels, asked for is 96' in capsys.readouterr().err
