"""What runs in every batch and every epoch, on a GPU that is only pretended

Under `FakeTensorMode` tensors have a device and no values: a mix of CPU and GPU raises, and so does everything that would have to wait for
the GPU to see a value (`.item()`, `nonzero`, `if tensor`).
"""
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from fer_perturb.augment import erase_rectangles, random_affine, relight, warp
from fer_perturb.kmeans import cluster_maps, eq1_features, kmeans_plus_plus, lloyd
from fer_perturb.perturb import Clusterer, ReclusterCallback, cluster_views, drop_cluster, keep_cluster, stack_clusters


@pytest.fixture
def pretended():
    with FakeTensorMode(allow_non_fake_inputs=False):
        try: torch.rand(1, device='cuda')[:1]
        except RuntimeError as e: # torch 2.5 with CUDA, on a machine without its driver
            if 'CUDA driver' not in str(e): raise
            pytest.skip('this torch asks the CUDA driver even for a pretended GPU')
        yield 'cuda'

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
