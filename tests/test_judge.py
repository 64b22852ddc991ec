"Regions and maps are judged by networks whose truth is known"
import pytest
import torch
from torch import nn

from fer_perturb.judge import (class_probabilities, deletion_insertion, expression_pixels, judge, landmark_masks, pointing_game, random_weights,
                               rank_correlation, region_worth, worth_figure, worth_table)
from fer_perturb.explore import toy_network
from fer_perturb.learner import face_learner, precision_callbacks
from fer_perturb.toyfaces import toy_faces


class Corner(nn.Module):
    "Class 0 if the upper left corner is anything but gray, class 1 otherwise"
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
    def forward(self, x):
        seen = (x[...,:12,:12]-.5).abs().mean((1,2,3))*self.weight
        return torch.stack([100*(seen-.01)] + [0*seen]*6, 1)

@pytest.fixture
def learn(few):
    learn = face_learner(few, Corner())
    learn.remove_cbs([cb for cb in learn.cbs if type(cb).__name__ in {type(c).__name__ for c in precision_callbacks('cpu')}])
    return learn

@pytest.fixture
def images():
    images = torch.full((6,48,48), 128, dtype=torch.uint8)
    images[:,:12,:12] = 250
    return images

@pytest.fixture
def corner():
    mask = torch.zeros(6, 48, 48, dtype=torch.bool)
    mask[:,:12,:12] = True
    return mask

def test_a_region_is_worth_what_the_network_takes_from_it(learn, images, corner):
    worth = region_worth(learn, images, dict(corner=corner, rest=~corner))
    assert worth.shape==(2,6,7) and (worth[0,:,0]<-.5).all() and not worth[1].any()
    torch.testing.assert_close(worth.sum(-1), torch.zeros(2, 6), atol=1e-5, rtol=0)
    assert len(worth_figure(learn, images[0], dict(corner=corner[0], rest=~corner[0])).axes)==4

def test_which_region_should_be_left_alone(learn, faces):
    data = faces[:6]
    data = data.with_columns(images=data.images.clone(), labels=torch.zeros(6, dtype=torch.int64))
    mask = torch.zeros(6, 48, 48, dtype=torch.bool)
    mask[:,:12,:12] = True
    table = worth_table(learn, data, dict(corner=mask, rest=~mask))
    assert table['accuracy when hidden, points'].tolist()==[-100, 0] and table['answers that change %'].tolist()==[100, 0]
    assert table['same shape elsewhere']['corner']==0 # a quarter of the frame away at least, so off the corner
    assert table['share of the frame %'].tolist()==[6.2, 93.8]

def test_regions_of_landmarks(faces):
    masks = landmark_masks(faces[:5])
    assert list(masks)==['eyes', 'brows', 'nose', 'mouth'] and all(m.shape==(5,48,48) and m.dtype==torch.bool for m in masks.values())
    with pytest.raises(ValueError, match='add_landmarks'): landmark_masks(faces.with_columns(regions=None))

def test_deleting_the_truth_ends_the_answer(images, corner):
    right,wrong = (deletion_insertion(Corner(), images, m.float()) for m in (corner, ~corner))
    assert right.deletion[:,1].max()<.5 and right.insertion[:,1].min()>.5 # a twelfth of the pixels is more than the corner
    assert wrong.deletion[:,-2].min()>.5 and wrong.insertion[:,-2].max()<.5
    for c in (right, wrong):
        assert torch.equal(c.deletion[:,0], c.insertion[:,-1]) and torch.equal(c.deletion[:,-1], c.insertion[:,0])

def test_pointing(corner):
    assert pointing_game(corner.float(), corner, 0)==(1, .0625) and pointing_game((~corner).float(), corner, 0).hits==0
    near = torch.zeros(6, 48, 48)
    near[:,13,13] = 1
    assert pointing_game(near, corner, 2).hits==1 and pointing_game(near, corner, 1).hits==0
    some = corner.clone()
    some[1:] = False # only the first counts
    assert pointing_game(near, some, 1).hits==0 and pointing_game(corner.float(), some, 0)==(1, .0625)
    with pytest.raises(ValueError, match='true region'): pointing_game(near, corner & ~corner)

def test_the_truth_of_toy_faces_is_where_the_expression_is():
    data = toy_faces(70, seed=9)
    truth = expression_pixels(data.labels, 9)
    assert not truth[data.labels==6].any() and truth[data.labels!=6].flatten(1).any(1).all()
    on = (truth & (data.regions>0)).sum()/truth.sum()
    assert on>.8 # nearly all of it on eyes, brows, nose and mouth

def test_random_weights_forget(faces):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4*46*46, 7))
    net(faces.images[:4,None]/255) # moves the running mean
    before,state = {k: v.clone() for k,v in net.state_dict().items()},torch.get_rng_state()
    fresh = random_weights(net)
    assert torch.equal(torch.get_rng_state(), state) and all(torch.equal(v, before[k]) for k,v in net.state_dict().items())
    assert not torch.equal(fresh[0].weight, net[0].weight) and not fresh[1].running_mean.any()
    assert torch.equal(random_weights(net)[0].weight, fresh[0].weight) and not torch.equal(random_weights(net, 1)[0].weight, fresh[0].weight)

def test_rank_correlation_is_spearmans():
    from scipy.stats import spearmanr
    a,b = torch.rand(2, 3, 6, 6)
    for x,y,r in zip(a, b, rank_correlation(a, b)): assert abs(spearmanr(x.flatten(), y.flatten())[0]-r)<1e-5

def test_what_is_judged_is_what_the_learner_says(few, faces):
    learn = face_learner(few, toy_network())
    from fer_perturb.evaluate import predict_faces
    torch.testing.assert_close(class_probabilities(learn, faces[:9].images), predict_faces(learn, faces[:9]).as_subclass(torch.Tensor), atol=.03, rtol=0)

def test_one_table(few, faces):
    pytest.importorskip('captum')
    data = faces[:14]
    learn = face_learner(few, toy_network())
    table = judge(dict(net=learn), data, expression_pixels(faces.labels, 5)[:14], ('gradient', 'gradcam'))
    assert [k for _,k in table.index]==['gradient', 'gradcam', 'at random', 'centre of the frame'] and table.shape[1]==5
    assert table.iloc[:2].notna().all().all() and table['like random weights ↓'].isna().tolist()==[False, False, True, True]
    bare = judge(dict(net=learn), data.with_columns(regions=None), kinds=('gradient',))
    assert list(bare.columns)==['deletion ↓', 'insertion ↑', 'like random weights ↓']
