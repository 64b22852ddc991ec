"""What runs in every batch and every epoch, on a GPU that is only pretended

Under `FakeTensorMode` tensors have a device and no values: a mix of CPU and GPU raises, and so does everything that would have to wait for
the GPU to see a value (`.item()`, `nonzero`, `if tensor`). One mix it lets pass, a CPU tensor with an index on the GPU; `IndexRule` does not.
"""
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.overrides import TorchFunctionMode

from fer_perturb import loaders
from fer_perturb.attention import add_attention, has_attention
from fer_perturb.augment import erase_rectangles, random_affine, relight, warp
from fer_perturb.backbones import create_backbone, map_sizes, multiply_adds, stage_outputs
from fer_perturb.kmeans import cluster_maps, eq1_features, kmeans_plus_plus, lloyd
from fer_perturb.learner import SmallFirst, attention_learner, perturb_learner
from fer_perturb.perturb import Clusterer, ReclusterCallback, cluster_views, drop_cluster, keep_cluster, stack_clusters


class IndexRule(TorchFunctionMode):
    "An index lies on the CPU or with the tensor, as real GPUs want it"
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.__getitem__:
            values,idxs = args[0],args[1] if isinstance(args[1], tuple) else args[1:]
            if any(torch.is_tensor(i) and i.device.type!='cpu' and i.device!=values.device for i in idxs):
                raise RuntimeError('indices should be either on cpu or on the same device as the indexed tensor')
        return func(*args, **(kwargs or {}))

@pytest.fixture
def pretended():
    with FakeTensorMode(allow_non_fake_inputs=False), IndexRule():
        yield 'cuda'

@pytest.fixture
def table(faces, monkeypatch):
    "Loaders' own table on the GPU, its row numbers on the CPU; a mask may choose any number of rows"
    for name in ('TensorFace', 'TensorMask', 'TensorCategory'): monkeypatch.setattr(loaders, name, lambda x: x) # a pretended tensor is no subclass
    dls = loaders.face_block(clusters=True).dataloaders(faces, bs=16)
    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()), IndexRule():
        yield SimpleNamespace(data=dls.train.data.to('cuda'), loader=dls.train, idxs=torch.arange(16, device='cuda'))

@pytest.fixture
def images(pretended): return torch.rand(16, 1, 48, 48, device=pretended)

@pytest.fixture
def clusters(pretended): return torch.zeros(16, 48, 48, dtype=torch.uint8, device=pretended)

def assign_moved(module, move, recurse=True):
    "What `nn.Module.to` does, without the swap of tensors that pretended ones refuse"
    for m in module.modules():
        for name,p in m._parameters.items():
            if p is not None: m._parameters[name] = nn.Parameter(move(p.data), p.requires_grad)
        for name,b in m._buffers.items():
            if b is not None: m._buffers[name] = move(b)
    return module

@pytest.fixture
def modules_move(monkeypatch): monkeypatch.setattr(nn.Module, '_apply', assign_moved)

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
    clusterer.saliency_of = lambda images: torch.zeros(len(images), 48, 48, dtype=torch.uint8, device=pretended)
    assert on_gpu(clusterer(images))

def test_perturbations(images, clusters):
    for perturb in (drop_cluster, keep_cluster, cluster_views, stack_clusters): assert on_gpu(perturb(images, clusters))

@pytest.mark.parametrize('perturb', ['drop', 'keep', 'views', 'stack'])
def test_a_training_step_of_the_callback(table, images, clusters, pretended, perturb):
    "What happens in each batch, between the loader and the model"
    recluster = ReclusterCallback(Clusterer(None), perturb)
    recluster.learn = SimpleNamespace(xb=(images, clusters), yb=(torch.zeros(16, dtype=torch.long, device=pretended),), training=True,
                                      dls=SimpleNamespace(train=table.loader))
    recluster.before_batch()
    assert on_gpu(*recluster.learn.xb, *recluster.learn.yb) and len(recluster.learn.xb)==1

def test_attention_is_built_from_an_image_on_the_gpu(images, modules_move):
    "Loaders give GPU images while a new model is still on the CPU: the image goes to the model, not the other way round"
    model = create_backbone('slim_resnet18')
    assert map_sizes(model, images[:1])==[24, 12, 6, 3] and multiply_adds(model, images[:1])>0
    attended = add_attention(model, image=images[:1])
    assert has_attention(attended) and {p.device.type for p in attended.parameters()}=={'cpu'}

def test_and_from_one_on_the_cpu_for_a_model_on_the_gpu(pretended, modules_move):
    model = create_backbone('slim_resnet18').to(pretended)
    assert on_gpu(*stage_outputs(model, ['layer1', 'layer2'], torch.rand(1, 1, 48, 48)).values())
    assert on_gpu(*add_attention(model, image=torch.rand(1, 1, 48, 48)).parameters())

@pytest.mark.parametrize('build', [attention_learner, lambda dls: perturb_learner(dls, attention='self')], ids=['phase 1', "'self'"])
def test_learners_are_built_from_loaders_on_the_gpu(images, pretended, modules_move, build):
    batch = images,torch.zeros(16, dtype=torch.long, device=pretended)
    dls = SimpleNamespace(c=7, device=torch.device(pretended), one_batch=lambda: batch, train=[batch])
    model = build(dls).model
    assert has_attention(model) and on_gpu(*model.parameters(), *model.buffers())

def test_small_images_are_tried_where_the_model_is(images):
    small = SmallFirst()
    small.learn = SimpleNamespace(model=create_backbone('slim_resnet18'))
    assert small._takes(images[:1, :, :36, :36])
