"Toy faces: the same for a seed, complete in every part, true to their regions, and angry only in the brows"
import time

import matplotlib.pyplot as plt
import pytest
import torch

from fer_perturb.data import EMOTIONS, REGIONS, USAGES, show_faces
from fer_perturb.toyfaces import draw_faces, toy_faces


def inside(regions, name): return regions==REGIONS.index(name)

def as_emotion(emotion, n=300, seed=3): return draw_faces(torch.full((n,), EMOTIONS.index(emotion)), seed)

@pytest.fixture(scope='module')
def drawn(): return draw_faces(torch.arange(700)%7, seed=1)

def test_shapes_and_types(drawn):
    assert drawn.images.shape==drawn.regions.shape==(700, 48, 48) and drawn.landmarks.shape==(700, 68, 2)
    assert drawn.images.dtype==drawn.regions.dtype==torch.uint8 and drawn.landmarks.dtype==torch.float32
    assert drawn.landmarks.isfinite().all() and drawn.images.float().std()>30

def test_same_seed_same_faces():
    a,b,other = toy_faces(140, seed=7),toy_faces(140, seed=7),toy_faces(140, seed=8)
    assert torch.equal(a.images, b.images) and torch.equal(a.regions, b.regions)
    assert (a.images!=other.images).float().mean()>.9

def test_landmarks_are_those_that_were_drawn():
    data,drawn = toy_faces(300, seed=7),draw_faces(torch.arange(300)%7, seed=7)
    assert torch.equal(data.column('landmarks'), drawn.landmarks) and torch.equal(data.images, drawn.images)
    assert torch.equal(data.part('PublicTest').column('landmarks'), drawn.landmarks[data.usage==1])

def test_global_random_state_is_left_alone():
    state = torch.get_rng_state()
    toy_faces(70)
    assert torch.equal(torch.get_rng_state(), state)

def test_no_two_faces_alike(faces): assert len(faces.images.flatten(1).unique(dim=0))==len(faces)

@pytest.mark.parametrize('n', [70, 101, 1400])
def test_every_class_in_every_part(n):
    data = toy_faces(n)
    counts = data.class_counts()
    assert all((counts[usage]>0).all() for usage in USAGES)
    assert len(data)==n and data.labels.tolist()==[i%7 for i in range(n)]
    if n==1400: assert [len(data.part(usage)) for usage in USAGES]==[1120, 140, 140]

@pytest.mark.parametrize('region, low, high', [('eyes', .03, .07), ('brows', .06, .12), ('nose', .02, .05), ('mouth', .02, .06)])
def test_share_of_each_region(drawn, region, low, high):
    mask = inside(drawn.regions, region)
    assert low<mask.float().mean()<high
    assert mask.flatten(1).any(1).all()

def test_regions_cover_a_fifth(drawn): assert .17<(drawn.regions>0).float().mean()<.25

def test_regions_hold_what_is_drawn():
    "A change of action units changes pixels inside the regions that they move, and few outside"
    neutral = as_emotion('neutral')
    for emotion,moved in dict(surprise=('eyes','brows','mouth'), sad=('brows','mouth'), disgust=('nose','mouth')).items():
        other = as_emotion(emotion)
        change = (other.images.float()-neutral.images.float()).abs()
        covered = torch.stack([inside(r, name) for r in (neutral.regions,other.regions) for name in REGIONS[1:]]).any(0)
        assert change[covered].mean()>8*change[~covered].mean(), emotion
        for name in moved: assert change[inside(neutral.regions, name)].mean()>5, (emotion, name)

def test_brows_and_open_mouths_are_dark(drawn):
    images,around = drawn.images.float(),(drawn.regions==0)
    centre = torch.zeros(48, 48, dtype=torch.bool)
    centre[12:36,12:36] = True
    skin = images[around & centre].mean()
    for name in ('eyes','brows'):
        darkest = torch.where(inside(drawn.regions, name), images, 255.).flatten(1).amin(1)
        assert (darkest<.7*skin).float().mean()>.95, name
    surprised = as_emotion('surprise')
    assert surprised.images[inside(surprised.regions, 'mouth')].float().mean()<.8*skin

def test_angry_is_neutral_outside_the_brows():
    angry,neutral = as_emotion('angry'),as_emotion('neutral')
    differs,brows = angry.images!=neutral.images,inside(neutral.regions, 'brows')
    assert torch.equal(angry.regions, neutral.regions)
    assert not (differs & ~brows).any()
    assert (differs & brows).flatten(1).any(1).all()

def test_landmarks_lie_in_their_regions(drawn):
    groups = dict(brows=range(17, 27), nose=range(27, 36), eyes=range(36, 48), mouth=range(48, 68))
    rows = torch.arange(700)[:,None]
    for name,points in groups.items():
        xy = drawn.landmarks[:,list(points)].round().long().clamp(0, 47)
        grown = torch.nn.functional.max_pool2d(inside(drawn.regions, name)[:,None].float(), 3, 1, 1)[:,0]
        assert grown[rows, xy[...,1], xy[...,0]].mean()>.97, name

def test_landmark_order(drawn):
    p = drawn.landmarks
    eyes = p[:,42:48].mean(1) - p[:,36:42].mean(1)
    assert (eyes[:,0]>6).all() and (eyes[:,1].abs()<eyes[:,0]*.45).all()
    assert (p[:,8,1]>p[:,57,1]).all() and (p[:,57,1]>p[:,30,1]).all() and (p[:,30,1]>p[:,27,1]).all()
    assert (p[:,0,0]<p[:,36,0]).all() and (p[:,16,0]>p[:,45,0]).all()
    for outer,upper,inner,lower in ((36,37,39,41), (45,44,42,46)):
        assert (p[:,upper,1]<p[:,lower,1]).all() and ((p[:,outer]-p[:,inner]).norm(dim=-1)>4).all()
        assert ((p[:,outer]-p[:,upper]).norm(dim=-1)<(p[:,inner]-p[:,upper]).norm(dim=-1)).all()
    assert (p[:,54,0]>p[:,48,0]).all() and (p[:,66,1]>p[:,62,1]).all()

def test_faces_are_not_centred(drawn):
    centre = drawn.landmarks[:,17:].mean(1)
    assert (centre.std(0)>2.5).all() and (centre.mean(0)-23.5).abs().max()<3

def test_larger_pictures_show_the_same_face():
    labels = torch.arange(7)
    small,large = draw_faces(labels, 5),draw_faces(labels, 5, size=96)
    shrunk = torch.nn.functional.avg_pool2d(large.images[:,None].float(), 2)[:,0]
    assert (shrunk-small.images.float()).abs().mean()<8
    assert torch.allclose((large.landmarks+.5)/2-.5, small.landmarks, atol=1e-4)

def test_fast_enough():
    start = time.process_time()
    draw_faces(torch.arange(1000)%7)
    assert time.process_time()-start<3

@pytest.mark.parametrize('labels, words', [(torch.arange(8), 'from 0 to 7'), ([-1,2], 'from -1'), (torch.rand(3), 'whole numbers'),
                                           ([], 'one number for each'), (torch.zeros(2, 2).long(), 'one number for each')])
def test_bad_labels(labels, words):
    with pytest.raises(ValueError, match=words): draw_faces(labels)

def test_too_few():
    with pytest.raises(ValueError, match='69 faces are too few'): toy_faces(69)

def test_show_faces(drawn):
    images = drawn.images[:9]
    for given in (images, images[:,None], images/255, images[:,None]/255):
        fig = show_faces(given, overlay=drawn.regions[:9], titles=list('abcdefghi'))
        assert len(fig.axes)==14 and fig.axes[8].get_title()=='i'
        plain = images[0]/255
        shown = torch.as_tensor(fig.axes[0].images[0].get_array())
        assert torch.allclose(shown[drawn.regions[0]==0], plain[drawn.regions[0]==0][:,None].expand(-1, 3), atol=1e-6)
        assert (shown[drawn.regions[0]>0].std(-1)>.05).all()
        plt.close(fig)

def test_show_faces_errors(drawn):
    with pytest.raises(ValueError, match='2 titles'): show_faces(drawn.images[:3], titles=['a','b'])
    with pytest.raises(ValueError, match='one map'): show_faces(drawn.images[:3], overlay=drawn.regions[:2])
    with pytest.raises(ValueError, match='one channel'): show_faces(torch.rand(2, 3, 48, 48))
