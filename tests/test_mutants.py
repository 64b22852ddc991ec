"Each of these changes once went through all tests: a test for each"
import io
import zipfile

import pytest
import torch
from fastai.test_utils import synth_learner
from fastai.vision.all import Callback, TensorImage, TensorMask
from PIL import Image
from helpers import Attention, Net

from fer_perturb.augment import FaceAugment, relight
from fer_perturb.learner import LowerOnPlateau, face_learner, perturb_learner, sgd
from fer_perturb.loaders import face_block
from fer_perturb.perturb import Clusterer, cluster_views, drop_cluster, keep_cluster, stack_clusters
from fer_perturb.readers import load_faces


def png(image):
    file = io.BytesIO()
    Image.fromarray(image.numpy()).save(file, 'PNG')
    return file.getvalue()

class Counting:
    "A metric that rises, or falls, by one with each epoch"
    def __init__(self, name, step): self.__name__,self.step,self.value = name,step,0.
    def __call__(self, pred, y): return self.value

class Turn(Callback):
    def __init__(self, metric): self.metric = metric
    def before_validate(self): self.metric.value += self.metric.step

@pytest.mark.parametrize('name, step, lowered', [('accuracy', 1, False), ('accuracy', -1, True), ('my_loss', -1, False), ('my_loss', 1, True), ('error_rate', 1, True)])
def test_the_plateau_knows_what_better_means(name, step, lowered):
    metric = Counting(name, step)
    learn = synth_learner(metrics=metric)
    learn.opt_func = sgd
    with learn.no_bar(), learn.no_logging(): learn.fit(9, .01, cbs=[LowerOnPlateau(name), Turn(metric)])
    assert (learn.opt.hypers[0]['lr']<.01)==lowered


def test_the_papers_weight_decay_shrinks_weights(faces):
    "Where the gradient is zero, decay is all that moves a weight: by rate times decay, with Nesterov momentum"
    learn = face_learner(face_block().dataloaders(faces[:70], bs=16, device='cpu'), Net())
    weights = learn.model.head[2].weight
    before = weights.detach().clone()
    weights.register_hook(lambda g: 0*g)
    learn.model.head[2].bias.requires_grad_(False)
    with learn.no_bar(), learn.no_logging(): learn.fit_paper(1, .5)
    n,velocity,factor = len(learn.dls.train),0.,1.
    for _ in range(n):
        decay = 1e-4*factor
        velocity = .9*velocity+decay
        factor -= .5*(decay+.9*velocity)
    assert torch.allclose(weights, before*factor, rtol=1e-6) and factor<1

def test_keep_cluster_keeps_to_p():
    images,maps = torch.rand(400, 1, 12, 12)*.4,torch.randint(1, 4, (400, 12, 12)).byte()
    def changed(p): return (keep_cluster(images, maps, p=p)!=images).flatten(1).any(1).float().mean().item()
    assert changed(0.)==0 and changed(1.)==1 and abs(changed(.25)-.25)<.08

def test_centroids_come_from_the_sample(monkeypatch):
    import fer_perturb.perturb as perturb
    seen = []
    original = perturb.shared_centroids
    monkeypatch.setattr(perturb, 'shared_centroids', lambda points, *args, **kwargs: seen.append(points.shape) or original(points, *args, **kwargs))
    images,saliency = torch.rand(30, 1, 10, 10),torch.rand(30, 10, 10)
    for sample,used in ((5, 5), (30, 30), (512, 30)): Clusterer(None, sample=sample, keep=.3).fit(images, saliency)
    assert seen==[(5, 30, 3), (30, 30, 3), (30, 30, 3)]

def test_every_epoch_has_its_own_sample(faces, monkeypatch):
    samples = []
    original = Clusterer._sample
    def spy(self, n, seed, processes):
        rows = original(self, n, seed, processes)
        samples.append(rows.tolist())
        return rows
    monkeypatch.setattr(Clusterer, '_sample', spy)
    learn = perturb_learner(face_block().dataloaders(faces[:140], bs=16, device='cpu'), Net(), Attention())
    learn.recluster.clusterer.sample = 20
    with learn.no_bar(), learn.no_logging(): learn.fit(3)
    assert len(samples)==3 and len({tuple(s) for s in samples})==3 and all(len(set(s))==20 for s in samples)

def test_sizes_do_not_share_a_cache(faces, tmp_path, capsys):
    with zipfile.ZipFile(tmp_path/'faces.zip', 'w') as z:
        for i,face in enumerate(faces[:28]): z.writestr(f'{("train", "test")[i>20]}/{face.label}/{i}.png', png(face.image))
    shapes = [tuple(load_faces(tmp_path/'faces.zip', size=size).images.shape) for size in (48, 24, 48, 24)]
    assert shapes==[(28, 48, 48), (28, 24, 24)]*2

@pytest.mark.parametrize('name', ['__MACOSX/train/{label}/._{i}.png', 'train/{label}/._{i}.png', '__MACOSX/{i}.png'])
def test_what_macos_adds_is_no_face(faces, tmp_path, name, capsys):
    with zipfile.ZipFile(tmp_path/'faces.zip', 'w') as z:
        for i,face in enumerate(faces[:28]):
            z.writestr(f'{("train", "test")[i>20]}/{face.label}/{i}.png', png(face.image))
            z.writestr(name.format(label=face.label, i=i), png(face.image))
    assert len(load_faces(tmp_path/'faces.zip'))==28

@pytest.mark.parametrize('most', [.1, .2, .5])
def test_relight_stays_in_its_range(most):
    "Brightness moves the middle gray by half of it at most, contrast the slope by a factor of 1-most to its inverse; both use their whole range"
    images = torch.tensor([.5, .3, .7]).expand(4000, 1, 1, 3)
    out = relight(images, most, p=1.).double()
    middle,slope = out[..., 0].flatten(),(out[..., 2].logit()-out[..., 1].logit()).flatten()/(2*torch.tensor(.7).double().logit())
    assert (middle-.5).abs().max()<=.5*most+1e-4 and .5-middle.min()>.48*most and middle.max()-.5>.48*most
    assert 1-most-1e-3<=slope.min()<1-.95*most and .95/(1-most)<slope.max()<=1/(1-most)+1e-3

def test_maps_get_no_clusters_from_outside():
    "What comes into the frame belongs to no cluster; pixels repeat the border"
    maps,images = TensorMask(torch.full((200, 24, 24), 2).byte()),TensorImage(torch.full((200, 1, 24, 24), .7))
    tfm = FaceAugment(max_rotate=0, max_zoom=1, max_shift=.3, max_lighting=0, p_affine=1., flip=False)
    images,maps = tfm((images, maps), split_idx=0)
    outside = (maps==0).float().mean((1, 2))
    assert set(maps.unique().tolist())=={0, 2} and outside.max()>.2 and (images-.7).abs().max()<1e-4
    edges = torch.cat([maps[:, 0], maps[:, -1], maps[:, :, 0], maps[:, :, -1]], 1)
    assert (edges==0).any(1).float().mean()>.9

@pytest.mark.parametrize('form', [drop_cluster, keep_cluster, cluster_views, stack_clusters])
@pytest.mark.parametrize('n', [2.5, 0, 256])
def test_clusters_are_counted_in_whole_numbers(form, n):
    with pytest.raises(ValueError, match='n_clusters'): form(torch.rand(2, 1, 4, 4), torch.ones(2, 4, 4, dtype=torch.uint8), n)

def test_first_centroids_come_from_the_table(faces):
    learn = perturb_learner(face_block().dataloaders(faces[:105], bs=16, device='cpu'), Net(), attention=Attention())
    images = learn.recluster._training_images()
    train = learn.dls.train.data
    assert images.dtype==torch.uint8 and len(images)==min(len(train), learn.recluster.clusterer.sample)

def test_the_training_loss_can_be_watched(faces):
    learn = face_learner(face_block().dataloaders(faces[:105], bs=16, device='cpu'), Net())
    with learn.no_bar(), learn.no_logging(): learn.fit_paper(1, monitor='train_loss')
    assert len(learn.recorder.values)==1
