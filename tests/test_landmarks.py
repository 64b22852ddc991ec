"Regions lie where the landmarks are, and the landmark share means what it says"
import importlib.util

import numpy as np
import pytest
import torch

from fer_perturb.data import REGIONS, FERData
from fer_perturb.landmarks import (MEAN_FACE, METHODS, add_landmarks, centre_prior, find_landmarks, landmark_groups,
                                   landmark_regions, landmark_share, mean_face_finder, salient_pixels, top_pixels)
from fer_perturb.masks import maskfer
from fer_perturb.toyfaces import draw_faces


@pytest.fixture(scope='module')
def drawn(): return draw_faces(torch.arange(7).repeat(4), seed=3)

def test_every_landmark_lies_in_its_region(drawn):
    regions = landmark_regions(drawn.landmarks)
    names = dict(right_brow='brows', left_brow='brows', right_eye='eyes', left_eye='eyes', nose='nose', mouth='mouth')
    for group,name in names.items():
        points = drawn.landmarks[:, list(landmark_groups[group])].round().long()
        inside = ((points>=0)&(points<48)).all(-1)
        hit = regions[torch.arange(len(points))[:, None].expand_as(inside)[inside], points[inside][:, 1], points[inside][:, 0]]
        assert (hit==REGIONS.index(name)).float().mean()>.85, group

def test_regions_move_with_the_landmarks(drawn):
    moved = landmark_regions(drawn.landmarks+torch.tensor([3., -2.]))
    assert torch.equal(moved[:, :-2, 3:], landmark_regions(drawn.landmarks)[:, 2:, :-3])

def test_share_of_chance_all_and_nothing():
    regions = torch.zeros(50, 48, 48, dtype=torch.uint8)
    regions[:, :24, :12] = 1
    assert landmark_share(regions>0, regions)==pytest.approx(8)
    assert landmark_share(regions==0, regions)==0
    assert landmark_share(torch.rand(50, 48, 48)<.3, regions)==pytest.approx(1, abs=.05)

def test_images_without_landmarks_do_not_count():
    regions = torch.zeros(2, 48, 48, dtype=torch.uint8)
    regions[0, :10] = 1
    assert landmark_share(torch.ones(2, 48, 48, dtype=torch.bool), regions)==pytest.approx(1)
    with pytest.raises(ValueError, match='landmarks are known'): landmark_share(regions>0, regions[1:].expand(2, -1, -1))

@pytest.mark.parametrize('levels', [3, 256, 10**6])
def test_top_pixels(levels):
    saliency = torch.randint(0, levels, (30, 200))
    for n in (1, 60, 199, 200):
        expected = saliency.argsort(dim=1, descending=True, stable=True)[:, :n].sort(1).values
        assert torch.equal(top_pixels(saliency, n), expected)
        assert torch.equal(top_pixels(saliency.float(), n), expected)

def test_salient_pixels_are_the_highest_and_equally_many():
    saliency = torch.rand(5, 48, 48)
    chosen = salient_pixels(saliency, .15)
    assert (chosen.flatten(1).sum(1)==346).all()
    for s,c in zip(saliency, chosen): assert s[c].min()>=s[~c].max()
    with pytest.raises(ValueError, match='at most 1'): salient_pixels(saliency, 30)

def test_masks_and_numbers_choose_the_same_pixels_among_equals():
    saliency = torch.randint(0, 4, (9, 12, 12), dtype=torch.uint8)
    numbers = top_pixels(saliency.flatten(1), round(.3*144))
    assert torch.equal(salient_pixels(saliency, .3).flatten(1).nonzero()[:,1].view(9, -1), numbers)

def test_centre_prior_is_round_and_highest_in_the_middle():
    prior = centre_prior(48)[0]
    assert torch.equal(prior, prior.T) and torch.allclose(prior, prior.flip(0)) and prior[23:25, 23:25].amin()==prior.max()

def test_landmarks_are_matched_by_name(faces, drawn, tmp_path):
    names = list(reversed(faces.names[:7]))
    np.savez(tmp_path/'l.npz', names=names, landmarks=drawn.landmarks[:7].numpy(), detected=np.array([True]*6 + [False]))
    data = add_landmarks(faces[:7], tmp_path/'l.npz')
    assert torch.equal(data.regions[1:], landmark_regions(drawn.landmarks[:6]).flip(0)) and data.regions[0].eq(0).all()
    with pytest.raises(ValueError, match='of another set'): add_landmarks(faces, tmp_path/'l.npz')
    with pytest.raises(FileNotFoundError, match='no landmarks at'): add_landmarks(faces, tmp_path/'nowhere.npz')
    np.savez(tmp_path/'poor.npz', names=names)
    (tmp_path/'text.npz').write_text('no landmarks')
    with pytest.raises(ValueError, match='text.npz is no file of landmarks'): add_landmarks(faces[:7], tmp_path/'text.npz')
    with pytest.raises(ValueError, match='has no landmarks, detected'): add_landmarks(faces[:7], tmp_path/'poor.npz')
    with pytest.raises(ValueError, match='68 points'): landmark_regions(drawn.landmarks[:, :60])

def test_landmarks_are_found_once_and_a_stopped_run_goes_on(faces, tmp_path):
    calls = []
    def finder(image):
        if len(calls)==50: raise KeyboardInterrupt
        calls.append(1)
        return mean_face_finder(image)
    store = tmp_path/'cache'/'found.npz'
    with pytest.raises(KeyboardInterrupt): find_landmarks(faces, finder, store, every=20)
    kept = len(np.load(store)['digests'])
    assert kept==40
    calls.clear()
    calls += [1]*100 # no more interrupts
    found = find_landmarks(faces, finder, store, every=20)
    assert len(calls)-100==len(faces)-kept
    assert torch.allclose(found.points, MEAN_FACE.expand(len(faces), -1, -1), atol=1e-4)
    find_landmarks(faces[torch.arange(len(faces)).flip(0)], finder, store)
    assert len(calls)-100==len(faces)-kept
    store.write_bytes(store.read_bytes()[:100])
    assert len(find_landmarks(faces[:5], finder, store).points)==5
    assert [f.name for f in store.parent.iterdir()]==['found.npz']

def test_without_the_extra_the_mean_face_is_used_and_said_so(faces, monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *a: None if name in ('dlib', 'face_recognition_models') else find_spec(name, *a))
    found = find_landmarks(faces[:7])
    assert (found.method==METHODS.index('mean face')).all() and 'fer_perturb[masks]' in repr(found)
    masked = maskfer(faces[:7])
    assert 'mean face' in capsys.readouterr().out and (masked.column('method')==2).all()

def test_dlib_finds_drawn_faces_or_takes_the_frame(tmp_path):
    pytest.importorskip('dlib')
    toys = draw_faces(torch.full((6,), 6), seed=2)
    data = FERData(torch.cat([toys.images, torch.full((2,48,48), 99, dtype=torch.uint8)]), torch.zeros(8, dtype=torch.long))
    found = find_landmarks(data, store=tmp_path/'l.npz')
    assert found.points.shape==(8,68,2) and found.points.isfinite().all()
    assert found.method[6:].tolist()==[METHODS.index('whole frame')]*2
    eyes = found.points[:6][found.detected[:6],36:48].mean(1) - toys.landmarks[found.detected[:6].nonzero()[:,0],36:48].mean(1)
    assert found.detected.sum()>=3 and eyes.norm(dim=-1).max()<4

def test_landmarks_of_another_size_are_scaled(tmp_path):
    small,large = (draw_faces(torch.arange(7), seed=3, size=s) for s in (48, 96))
    for name,drawn,more in (('48', small, {}), ('96', large, dict(size=96))):
        np.savez(tmp_path/f'{name}.npz', names=[str(i) for i in range(7)], landmarks=drawn.landmarks.numpy(), detected=np.ones(7, bool), **more)
    for images in (small.images, large.images):
        a,b = (add_landmarks(FERData(images, torch.arange(7)), tmp_path/f'{name}.npz').regions for name in ('48', '96'))
        assert (a>0).any() and (a==b).float().mean()>.99
