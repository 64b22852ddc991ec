"""What runs in every batch and every epoch, on a GPU that is only pretended

Under `FakeTensorMode` tensors have a device and no values: a mix of CPU and GPU raises, and so does everything that would have to wait for
the GPU to see a value (`.item()`, `nonzero`, `if tensor`). One mix it lets pass, a CPU tensor with an index on the GPU; `IndexRule` does not.
"""
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.overrides import TorchFunctionMode

from fer_perturb import loaders
from fer_perturb.augment import erase_rectangles, random_affine, relight, warp
from fer_perturb.kmeans import cluster_maps, eq1_features, kmeans_plus_plus, lloyd
from fer_perturb.perturb import Clusterer, ReclusterCallback, cluster_views, drop_cluster, keep_cluster, stack_clusters


class IndexRule(TorchFunctionMode):
    "An index lies on the CPU or with the tensor, as real GPUs want it"
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.__getitem__:
            values,idxs = args[0],args[1] if isinstance(args[1], tuple) else args[1:]
            if any(torch.is_tensor(i) and i.device.type!='cpu' and i.device!=values.device for i in idxs):
                raise RuntimeError('indices should be either on cpu or on the same device as the indexed tensor')
        return func(*args, **(kwargs or {}))

def skip_without_pretence():
    try: torch.rand(1, device='cuda')[:1]
    except RuntimeError as e: # torch 2.5 with CUDA, on a machine without its driver
        if 'CUDA driver' not in str(e): raise
        pytest.skip('this torch asks the CUDA driver even for a pretended GPU')

@pytest.fixture
def pretended():
    with FakeTensorMode(allow_non_fake_inputs=False), IndexRule():
        skip_without_pretence()
        yield 'cuda'

@pytest.fixture
def table(faces, monkeypatch):
    "Loaders' own table on the GPU, its row numbers on the CPU; a mask may choose any number of rows"
    for name in ('TensorFace', 'TensorMask', 'TensorCategory'): monkeypatch.setattr(loaders, name, lambda x: x) # a pretended tensor is no subclass
    dls = loaders.face_block(clusters=True).dataloaders(faces, bs=16)
    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()), IndexRule():
        skip_without_pretence()
        yield SimpleNamespace(data=dls.train.data.to('cuda'), loader=dls.train, idxs=torch.arange(16, device='cuda'))

@pytest.fixture
def images(pretended): return torch.rand(16, 1, 48, 48, device=pretended)

@pytest.fixture
def clusters(pretended): return torch.zeros(16, 48, 48, dtype=torch.uint8, device=pretended)

def on_gpu(*tensors): return all(t.device.type=='cuda' for t in tensors)

def test_the_pretence_finds_mistakes(images):
    with pytest.raises(RuntimeError, match='device'): images + torch.rand(16, 1, 48, 48)
    with pytest.raises(DataDependentOutputException): images.sum().item()
    with pytest.raises(DataDependentOutputException):
        if images.sum()>0: pass
    with pytest.raises(DynamicOutputShapeException): images[images>.5]
    with pytest.raises(RuntimeError, match='indices should be'): torch.rand(16)[torch.zeros(2, dtype=torch.long, device='cuda')]

def test_a_table_is_indexed_from_the_gpu(table):
    data = table.data
    for name in ('images', 'labels', 'usage', 'regions'): assert on_gpu(data.column(name, table.idxs), getattr(data, name))
    for part in (data[3:9], data[[5, 2]], data[table.idxs], data[data.usage==0], data.part('Training'), data.part('Training')[:3]):
        assert part.rows.device.type=='cpu' and on_gpu(part.images, part.labels)

def test_rows_of_a_table_are_written_on_the_gpu(table):
    table.data[table.idxs].set_rows('votes', torch.rand(16, 7, device='cuda'))
    table.data.set_rows('votes', torch.rand(len(table.data), 7, device='cuda'))
    assert on_gpu(table.data.column('votes'), table.data.column('votes', table.idxs))

def test_classes_are_counted_on_the_cpu(table):
    assert all(counts.device.type=='cpu' for counts in table.data.class_counts().values())

@pytest.mark.parametrize('clusters', [False, True])
def test_a_batch_is_taken_on_the_gpu(table, clusters):
    if clusters: table.data.set_rows('clusters', torch.zeros(len(table.data), 48, 48, dtype=torch.uint8, device='cuda'))
    for idxs in (table.idxs, table.idxs.cpu()):
        batch = table.loader.take(idxs)
        assert len(batch)==3 and on_gpu(*batch)

def test_augmentations(images, clusters):
    matrices = random_affine(16, images.device)
    moved = warp(clusters[:, None].float(), matrices, mode='nearest', padding_mode='zeros')
    assert on_gpu(matrices, moved, relight(warp(images, matrices)), erase_rectangles(images))

def test_kmeans(images, pretended):
    saliency = torch.zeros(16, 48, 48, dtype=torch.uint8, device=pretended)
    points,pixels = eq1_features(images[:, 0], saliency, keep=.3)
    start = kmeans_plus_plus(points, 3, generator=torch.Generator().manual_seed(0))
    found = lloyd(points, start)
    assert on_gpu(*found, cluster_maps(found.labels, pixels, (48, 48)))
    assert on_gpu(lloyd(points, start[0], weights=torch.rand(16, 691, device=pretended), n_iter=0).labels)

def test_clusters_of_a_batch(images, pretended):
    clusterer = Clusterer(None)
    clusterer.centroids = torch.rand(3, 3, device=pretended)
    assert on_gpu(clusterer(images, torch.zeros(16, 48, 48, dtype=torch.uint8, device=pretended)))

def test_perturbations(images, clusters):
    for perturb in (drop_cluster, keep_cluster, cluster_views, stack_clusters): assert on_gpu(perturb(images, clusters))

@pytest.mark.parametrize('perturb', ['drop', 'keep', 'views', 'stack'])
def test_a_training_step_of_the_callback(images, clusters, pretended, perturb):
    "What happens in each batch, between the loader and the model"
    recluster = ReclusterCallback(Clusterer(None), perturb)
    recluster.learn = SimpleNamespace(xb=(images, clusters), yb=(torch.zeros(16, dtype=torch.long, device=pretended),), training=True)
    recluster.before_batch()
    assert on_gpu(*recluster.learn.xb, *recluster.learn.yb) and len(recluster.learn.xb)==1
