"Clusters keep their names, perturbations hide what they should, and the callback keeps the books"
import pytest
import torch
from fastai.vision.all import Callback, CancelFitException, CrossEntropyLossFlat, Learner, TensorImage, TensorMask, aug_transforms, setup_aug_tfms
from helpers import Net
from torch import nn

from fer_perturb.attention import add_attention
from fer_perturb.augment import EraseRandom, FaceAugment
from fer_perturb.backbones import create_backbone
from fer_perturb.loaders import face_block
from fer_perturb.perturb import (Clusterer, ReclusterCallback, cluster_views, drop_cluster, keep_cluster,
                                 stack_clusters, with_clusters)


@pytest.fixture(scope='module')
def model(): return add_attention(create_backbone('slim_resnet18')).eval()

@pytest.fixture
def clusters():
    "Three vertical bars of four columns each"
    maps = torch.zeros(64, 48, 48, dtype=torch.uint8)
    for i in range(3): maps[:, 10:40, 8+12*i:12+12*i] = i+1
    return maps

@pytest.fixture
def images(): return torch.rand(64, 1, 48, 48)*.4

def hidden_cluster(image, perturbed, clusters):
    "Which cluster was hidden: 0 for none, and an error for anything else"
    changed = (image!=perturbed)[0]
    if not changed.any(): return 0
    number, = clusters[changed].unique().tolist()
    assert torch.equal(changed, clusters==number)
    return number

def test_drop_hides_exactly_one_cluster(images, clusters):
    hidden = [hidden_cluster(*o) for o in zip(images, drop_cluster(images, clusters, p=1.), clusters)]
    assert set(hidden)=={1, 2, 3}
    share = torch.tensor([hidden_cluster(*o)==0 for _ in range(8) for o in zip(images, drop_cluster(images, clusters, p=.25), clusters)]).float().mean()
    assert abs(share-.75)<.08
    assert torch.equal(drop_cluster(images, clusters, p=0.), images)

def test_keep_shows_exactly_one_cluster(images, clusters):
    for image,kept,map in zip(images, keep_cluster(images, clusters, p=1.), clusters):
        shown = (kept!=.5)[0]
        number, = map[shown].unique().tolist()
        assert number>0 and torch.equal(shown, map==number) and torch.equal(kept[0][shown], image[0][shown])

def test_views_and_stack(images, clusters):
    views = cluster_views(images, clusters).unflatten(0, (64, 4))
    assert torch.equal(views[:, 3], images)
    for i in range(3):
        assert [hidden_cluster(*o) for o in zip(images, views[:, i], clusters)]==[i+1]*64
    stack = stack_clusters(images, clusters)
    assert stack.shape==(64, 4, 48, 48) and torch.equal(stack[:, :1], images)
    assert torch.equal(stack[:, 2]!=.5, clusters==2)
    colour = torch.rand(64, 3, 48, 48)*.4
    stack = stack_clusters(colour, clusters)
    assert stack.shape==(64, 12, 48, 48) and torch.equal(stack[:, 6:9], torch.where((clusters==2)[:, None], colour, .5))

def test_image_and_map_stay_aligned(clusters):
    "A painted cluster and its map move together, through our augmentations and fastai's"
    painted = TensorImage((clusters==2)[:, None].float())
    ours = [FaceAugment(max_rotate=30, max_zoom=1.3, max_shift=.1, max_lighting=0., p_affine=1.)]
    for tfms in (ours, setup_aug_tfms(aug_transforms(max_rotate=30, p_affine=1., max_lighting=0., pad_mode='zeros'))):
        image,map = painted,TensorMask(clusters.long())
        for tfm in tfms: image,map = tfm((image, map), split_idx=0)
        agree = ((image[:, 0]>.5)==(map==2)).float().mean()
        assert agree>.99
        assert ((image[:, 0]>.5)!=(clusters==2)).float().mean()>.02

def saliency_at(points):
    "Blobs of attention at (column, row) points"
    rows,columns = torch.meshgrid(torch.arange(48.), torch.arange(48.), indexing='ij')
    return torch.stack([sum(torch.exp(-((columns-x)**2+(rows-y)**2)/20) for x,y in face) for face in points])

def test_names_stay_the_same(model):
    "The left blob is cluster 1 in every image, although the blobs move from image to image"
    moves = torch.randint(-3, 4, (200, 2), generator=torch.Generator().manual_seed(0)).tolist()
    saliency = saliency_at([[(12+dx, 15+dy), (24+dx, 36+dy), (36+dx, 15+dy)] for dx,dy in moves])
    images = torch.full((200, 1, 48, 48), .5)
    clusterer = Clusterer(model, keep=.1).fit(images, saliency)
    for seed in (0, 1):
        clusters = clusterer.fit(images, saliency, seed=seed)(images, saliency)
        for (dx,dy),map in zip(moves, clusters): assert [map[15+dy, 12+dx], map[36+dy, 24+dx], map[15+dy, 36+dx]]==[1, 2, 3]

def test_every_image_has_its_own_clusters_unless_told_otherwise(model, faces):
    images = faces.images[:32, None]
    saliency = saliency_at([[(10+i%8, 15), (20+i%8, 30), (30+i%8, 15)] for i in range(32)])
    own = Clusterer(model, keep=.2).fit(images, saliency)(images, saliency)
    one = Clusterer(model, keep=1., one_map=True).fit(images, saliency)(images, saliency)
    assert len(own.unique(dim=0))>4
    assert len(one.unique(dim=0))==1 and one.min()==1

def test_memory_does_not_grow_with_the_images(peak_memory):
    clusterer = Clusterer(None).fit(torch.rand(64, 1, 16, 16), torch.rand(64, 16, 16))
    def extra(n):
        images,saliency = torch.rand(n, 1, 16, 16),torch.rand(n, 16, 16)
        with peak_memory() as memory: clusters = clusterer(images, saliency)
        return memory.peak-clusters.untyped_storage().nbytes()
    assert extra(16*2048)<1.05*extra(4*2048)

def test_loaders_with_clusters(faces):
    dls = face_block(batch_tfms=[FaceAugment(), EraseRandom()]).dataloaders(faces, bs=16)
    with_maps = with_clusters(dls, drop_tfms=(EraseRandom,))
    assert [len(b) for b in (dls.one_batch(), with_maps.one_batch(), with_maps.valid.one_batch())]==[2, 3, 3]
    assert with_maps.n_inp==2
    assert not any(isinstance(t, EraseRandom) for t in with_maps.train.after_batch.fs)
    with_maps.train.data.set_rows('clusters', torch.ones_like(with_maps.train.data.images))
    assert dls.train.data.column('clusters') is None and faces.column('clusters') is None
    assert with_maps.train.data.columns['images'] is faces.columns['images']


class Watch(Callback):
    "What reaches the model, and the cluster maps of each epoch"
    order = ReclusterCallback.order+0.5
    def before_fit(self): self.batches,self.maps = [],[]
    def before_batch(self): self.batches.append((self.training, self.xb[0].detach().clone(), self.yb[0].clone() if self.yb else None))
    def after_epoch(self): self.maps.append(self.dls.train.data.column('clusters').clone())

def fit(faces, recluster, epochs=1, n_in=1, watch=None):
    dls = with_clusters(face_block().dataloaders(faces, bs=16))
    watch = watch or Watch()
    learn = Learner(dls, Net(n_in), loss_func=CrossEntropyLossFlat(), cbs=[recluster, watch], lr=1e-3)
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs)
    return learn,watch

@pytest.mark.parametrize('perturb,channels,factor', [('drop', 1, 1), ('keep', 1, 1), ('views', 1, 4), ('stack', 4, 1)])
def test_what_reaches_the_model(faces, model, perturb, channels, factor):
    learn,watch = fit(faces, ReclusterCallback(Clusterer(model), perturb, p=1., fill=2.), n_in=channels)
    train = [b for b in watch.batches if b[0]]
    for _,x,y in train:
        assert x.shape==(16*factor, channels, 48, 48) and len(y)==len(x)
        assert (x==2.).any()
    plain = [x for training,x,_ in watch.batches if not training]
    assert all((x==2.).any()==(perturb=='stack') for x in plain)
    assert len(learn.get_preds(dl=learn.dls.test_dl(faces[:5]))[0])==5

def test_clusters_belong_to_training_rows_only(faces, model):
    learn,watch = fit(faces, ReclusterCallback(Clusterer(model)))
    table = learn.dls.train.data.columns['clusters']
    training = faces.usage==0
    assert (table[training]>0).flatten(1).any(1).all()
    assert table[~training].eq(0).all()
    assert ((table[training]>0).float().mean((1, 2))-.3).abs().max()<.001

def test_every(faces, model, monkeypatch):
    counts = []
    original = Clusterer.fit
    monkeypatch.setattr(Clusterer, 'fit', lambda self, *args, **kwargs: counts.append(1) or original(self, *args, **kwargs))
    fit(faces, ReclusterCallback(Clusterer(model), every=2), epochs=5)
    assert len(counts)==3

def test_frozen_saliency_is_computed_once_and_again_when_the_model_changed(faces, model, monkeypatch):
    counts = []
    original = Clusterer.saliency_of
    monkeypatch.setattr(Clusterer, 'saliency_of', lambda self, images, *args: counts.append(len(images)) or original(self, images, *args))
    recluster = ReclusterCallback(Clusterer(model))
    learn,_ = fit(faces, recluster, epochs=3)
    assert counts==[336]
    with torch.no_grad(): model.conv1.weight.mul_(1.5)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert counts==[336, 336]

def test_own_attention_follows_the_learner(faces):
    dls = with_clusters(face_block().dataloaders(faces, bs=16))
    watch = Watch()
    learn = Learner(dls, add_attention(create_backbone('slim_resnet18')), loss_func=CrossEntropyLossFlat(), cbs=[ReclusterCallback(Clusterer(None)), watch])
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-2)
    assert not torch.equal(*watch.maps)
    assert learn.model.training or not any(m._forward_hooks for m in learn.model.modules())

def test_views_are_averaged_in_prediction(faces, model):
    learn,_ = fit(faces, ReclusterCallback(Clusterer(model), views=True))
    test = faces[:6]
    predictions,_ = learn.get_preds(dl=learn.dls.test_dl(test), act=nn.Identity())
    images = test.images[:, None]/255
    views = cluster_views(images, learn.recluster.clusterer(images))
    with torch.no_grad(): expected = learn.model(views).unflatten(0, (6, 4)).mean(1)
    assert torch.allclose(predictions, expected, atol=1e-5)

def test_other_loaders_are_clustered_batch_by_batch(model):
    "Loaders without cluster maps, of images of another size"
    from fastai.data.core import DataLoaders
    from torch.utils.data import TensorDataset
    from fastai.data.load import DataLoader
    data = TensorDataset(torch.rand(32, 1, 32, 32)*.4, torch.arange(32)%7)
    dls = DataLoaders(DataLoader(data, bs=16), DataLoader(data, bs=16))
    seen = []
    class Look(Callback):
        order = ReclusterCallback.order+0.5
        def before_batch(self): seen.append((self.training, (self.xb[0]==.5).float().mean().item()))
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(1024, 7)), loss_func=nn.CrossEntropyLoss(), cbs=[ReclusterCallback(Clusterer(model), p=1.), Look()])
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert all((share>.05)==training for training,share in seen)

def test_cancelled_fit_leaves_a_working_learner(faces, model):
    class Stop(Watch):
        def after_batch(self):
            if self.training and self.iter==2 and not hasattr(self, 'stopped'):
                self.stopped = True
                raise CancelFitException
    learn,_ = fit(faces, ReclusterCallback(Clusterer(model)), watch=Stop())
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert len(learn.get_preds()[0])==42

def test_mistakes(faces, model):
    with pytest.raises(ValueError, match='choose one of'): ReclusterCallback(Clusterer(model), perturb='blur')
    with pytest.raises(ValueError, match='at least 1'): ReclusterCallback(Clusterer(model), every=0)
    with pytest.raises(ValueError, match='call fit'): Clusterer(model)(faces.images[:2, None])
    with pytest.raises(ValueError, match='n_clusters'): Clusterer(model, n_clusters=50, keep=.01).fit(faces.images[:2, None], faces.images[:2])

@pytest.mark.parametrize('setting, values', [('n_clusters', [0, 256, 2.5, True]), ('refine', [-1, .5]), ('sample', [0, 1.5]), ('keep', [0, 1.5, float('nan')]),
    ('feature', ['depth']), ('saliency', ['nothing'])])
def test_settings_out_of_range_are_named(setting, values):
    Clusterer(None)
    for value in values:
        with pytest.raises(ValueError, match=f'{setting} is|called {value!r}'): Clusterer(None, **{setting: value})
