"Batched k-means gives what scikit-learn gives, on every path, without a look at values and with bounded memory"
import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans as SklearnKMeans
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import fer_perturb.kmeans as module
from fer_perturb.kmeans import (Fused, KMeans, check_points, cluster_maps, eq1_features, image_slices, kmeans,
                                kmeans_plus_plus, lloyd, shared_centroids)

eq1_range = torch.tensor([1.5, 1.5, 1.2])

def random_points(b, n, d=3): return torch.rand(b, n, d)*(eq1_range if d==3 else 1)

def pixel_points(b=40, size=16, keep=.5):
    "Points on a pixel grid with few gray levels, where ties are common, and a start on pixels"
    points,_ = eq1_features(torch.randint(0, 8, (b, size, size)).float()/8, torch.rand(b, size, size), keep=keep)
    return points,points[:, [3, 40, 90]]

def same(a, b, rtol=1e-4):
    assert torch.equal(a.labels, b.labels)
    torch.testing.assert_close(a.centroids, b.centroids, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(a.inertia, b.inertia, rtol=rtol, atol=1e-5)

def sklearn(points, start, weights=None, n_iter=10):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return SklearnKMeans(len(start), init=start.numpy(), n_init=1, max_iter=n_iter, tol=0, algorithm='lloyd').fit(
            points.numpy(), sample_weight=None if weights is None else weights.numpy())

@pytest.fixture(autouse=True)
def own_step(monkeypatch): monkeypatch.setattr(module, 'fused', Fused())


# what is computed

@pytest.mark.parametrize('n,d,k,n_iter,weighted', [(150, 3, 3, 10, False), (80, 3, 5, 300, False), (691, 3, 3, 10, False), (120, 2, 4, 5, True), (60, 1, 2, 10, False)])
def test_same_as_sklearn(n, d, k, n_iter, weighted):
    points = random_points(60, n, d)
    weights = torch.rand(60, n)+.1 if weighted else None
    start = points[:, :k].clone()
    found = kmeans(points, centroids=start, weights=weights, n_iter=n_iter)
    differ = 0
    for i in range(60):
        reference = sklearn(points[i], start[i], None if weights is None else weights[i], n_iter)
        if (reference.labels_!=found.labels[i].numpy()).any(): differ += 1 # a point may lie on a border, to six digits
        else: np.testing.assert_allclose(found.centroids[i], reference.cluster_centers_, atol=1e-4)
        assert math.isclose(found.inertia[i], reference.inertia_, rel_tol=1e-4)
    assert differ<=1

def test_points_far_from_zero():
    points = random_points(20, 200)+1000
    found = kmeans(points, centroids=points[:, :3])
    agree = [(sklearn(p, p[:3]).labels_==l.numpy()).mean() for p,l in zip(points, found.labels)]
    assert np.mean(agree)>.999

def test_tight_clusters_have_exact_inertia():
    points = torch.tensor([[0., 0, 0], [1, 1, 1]]).repeat_interleave(50, 0)+1e-4*torch.randn(100, 3)
    found = kmeans(points[None], centroids=points[[0, 99]])
    assert math.isclose(found.inertia, sklearn(points, points[[0, 99]]).inertia_, rel_tol=1e-3)
    points = random_points(1, 20)
    assert (kmeans(points, centroids=points).inertia<1e-10).all()

@pytest.mark.parametrize('k', [2, 3, 7, 20])
def test_ties_go_to_the_lowest_index(k):
    grid = torch.cartesian_prod(torch.arange(10.), torch.arange(10.)).repeat(30, 1, 1)
    centroids = torch.randint(0, 10, (30, k, 2)).float()
    centroids[:, -1] = centroids[:, 0]
    distances = (grid[:, :, None].double()-centroids[:, None].double()).square().sum(-1)
    assert (distances.sort(-1).values.diff(dim=-1)[..., 0]==0).any()
    assert torch.equal(lloyd(grid, centroids, n_iter=0).labels, distances.argmin(-1))

def test_permuted_points_have_permuted_labels():
    points,start = pixel_points()
    order = torch.randperm(points.shape[1])
    weights = torch.rand(points.shape[:2])
    plain,shuffled = kmeans(points, centroids=start, weights=weights),kmeans(points[:, order], centroids=start, weights=weights[:, order])
    assert torch.equal(plain.labels[:, order], shuffled.labels)
    torch.testing.assert_close(plain.centroids, shuffled.centroids, rtol=1e-4, atol=1e-5)

def test_every_image_is_clustered_by_itself():
    points,start = pixel_points()
    whole = kmeans(points, centroids=start)
    for i in (0, 17, 39): same(KMeans(*(o[i:i+1] for o in whole)), kmeans(points[i:i+1], centroids=start[i]))

def test_weights_are_copies():
    for _ in range(20):
        points,weights = random_points(1, 60),torch.randint(0, 4, (1, 60))
        copies = points[0].repeat_interleave(weights[0], 0)[None]
        start = copies[:, [0, -1, 20]]
        a,b = kmeans(points, centroids=start, weights=weights),kmeans(copies, centroids=start)
        assert torch.equal(a.labels[0].repeat_interleave(weights[0]), b.labels[0])
        torch.testing.assert_close(a.centroids, b.centroids, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(a.inertia, b.inertia, rtol=1e-4, atol=1e-5)

def test_solution_is_a_fixed_point():
    points = random_points(50, 200)
    found = kmeans(points, 3, n_iter=100)
    same(found, kmeans(points, centroids=found.centroids, n_iter=1), rtol=1e-5)

def test_inertia_never_rises():
    points = random_points(30, 300)
    start = kmeans_plus_plus(points, 4)
    inertia = torch.stack([kmeans(points, centroids=start, n_iter=i).inertia for i in range(8)])
    assert (inertia.diff(dim=0)<=1e-4).all() and (inertia[-1]<inertia[0]).all()

def test_empty_cluster_keeps_its_centroid():
    points,far = random_points(5, 50),torch.tensor([9., 9, 9])
    start = torch.stack([points[0, 0], far, points[0, 1]])
    found = kmeans(points, centroids=start)
    assert not (found.labels==1).any()
    torch.testing.assert_close(found.centroids[:, 1], far.expand(5, 3))
    weights = torch.ones(5, 50).masked_fill(kmeans(points, centroids=start, n_iter=0).labels==2, 0)
    torch.testing.assert_close(kmeans(points, centroids=start, weights=weights, n_iter=1).centroids[:, 2], points[0, 1].expand(5, 3))

@pytest.mark.parametrize('distinct', [1, 2])
def test_fewer_distinct_points_than_clusters(distinct):
    points = random_points(6, distinct).repeat(1, 20, 1)
    found = kmeans(points, 4)
    assert found.centroids.isfinite().all() and (found.inertia<1e-8).all()
    assert all(len(l.unique())==distinct for l in found.labels)

def test_constant_images():
    flat = torch.full((3, 12, 12), .5)
    points,pixels = eq1_features(flat, flat, keep=.5)
    assert torch.equal(pixels, torch.arange(72).expand(3, -1))
    found = kmeans(points, 3, generator=torch.Generator().manual_seed(0))
    assert found.centroids.isfinite().all() and cluster_maps(found.labels, pixels, (12, 12)).unique().tolist()==[0, 1, 2, 3]

@pytest.mark.parametrize('feature', ['intensity', 'attention'])
def test_twelve_gray_images_of_fer2013(feature):
    "Twelve images of FER2013 are all one gray, and a network's attention on them may be too"
    points,_ = eq1_features(torch.zeros(2, 48, 48, dtype=torch.uint8), torch.zeros(2, 48, 48, dtype=torch.uint8), feature=feature, keep=.3)
    assert points.isfinite().all() and (points[..., 2]==0).all()


# every path gives the same

@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('chunk', [1, 7, 40, 1000])
def test_chunks_change_nothing(chunk, weighted):
    points,_ = pixel_points()
    weights = torch.rand(points.shape[:2]) if weighted else None
    a,b = (kmeans(points, 3, weights=weights, chunk=c, generator=torch.Generator().manual_seed(1)) for c in (None, chunk))
    same(a, b)

def test_no_images():
    found = kmeans(torch.empty(0, 9, 3), 2)
    assert found.labels.shape==(0, 9) and found.centroids.shape==(0, 2, 3)

@pytest.mark.parametrize('n', [0, 1, 5, 999, 1000, 1001])
def test_slices_are_equal_and_cover_everything(n):
    slices = image_slices(n, 8, torch.device('cpu'), chunk=100)
    lengths = [s.stop-s.start for s in slices]
    assert [i for s in slices for i in range(s.start, s.stop)]==list(range(n))
    assert not lengths or max(lengths)<=100 and max(lengths)-min(lengths)<=1

def test_compiled_same_as_plain():
    points,_ = eq1_features(torch.randint(0, 256, (500, 48, 48), dtype=torch.uint8), torch.rand(500, 48, 48), keep=.3)
    start = points[:, [50, 200, 350]]
    weights = torch.rand(points.shape[:2])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        compiled = kmeans(points, centroids=start, compiled=True)
    if module.fused.failed: pytest.skip('nothing can be compiled here')
    same(compiled, kmeans(points, centroids=start, compiled=False))
    same(kmeans(points, centroids=start, weights=weights, compiled=True, chunk=70), kmeans(points, centroids=start, weights=weights, compiled=False))
    many,many_start = random_points(300, 691),random_points(300, 3)
    a,b = (kmeans(many, centroids=many_start, compiled=c) for c in (True, False))
    assert (a.labels!=b.labels).float().mean()<1e-4
    torch.testing.assert_close(a.inertia, b.inertia, rtol=1e-4, atol=0)

def test_without_a_compiler_one_warning(monkeypatch):
    def fail(*args, **kwargs): raise RuntimeError('no compiler')
    monkeypatch.setattr(torch, 'compile', fail)
    points,start = pixel_points()
    with pytest.warns(UserWarning, match='runs uncompiled') as caught:
        for _ in range(2): found = kmeans(points, centroids=start, compiled=True)
    assert len(caught)==1
    same(found, kmeans(points, centroids=start, compiled=False))

def test_compiling_is_left_until_it_pays(monkeypatch):
    made = []
    def count(f, **kwargs): made.append(f); return f
    monkeypatch.setattr(torch, 'compile', count)
    points = random_points(256, 20)
    per_call = 256*20*3*10
    monkeypatch.setattr(module, 'fused', Fused(price=3*per_call))
    for expected in (0, 0, 0, 2, 2): # step and result
        kmeans(points, 3)
        assert len(made)==expected
    step = Fused(price=0)
    assert step.pays(points, 3, 10)
    assert not step.pays(points[:10], 3, 10) # a handful
    assert not step.pays(points, 7, 10) # too many sums
    with FakeTensorMode(): assert not step.pays(torch.empty(256, 20, 3, device='cuda'), 3, 10)

def test_mixed_precision_changes_nothing():
    points,start = pixel_points()
    with torch.autocast('cpu', torch.bfloat16): inside = kmeans(points, centroids=start)
    same(inside, kmeans(points, centroids=start))

def test_other_types_and_layouts():
    points,start = pixel_points()
    expected = kmeans(points, centroids=start)
    same(kmeans(points.double(), centroids=start.double()), expected)
    same(kmeans(points.transpose(1, 2).contiguous().transpose(1, 2), centroids=start), expected)
    with torch.inference_mode(): same(kmeans(points.clone(), centroids=start.clone()), expected)
    before = points.clone()
    assert not kmeans(points.requires_grad_(), centroids=start).centroids.requires_grad
    assert torch.equal(points, before)

def test_input_with_one_feature_or_point_is_not_changed():
    for points in (random_points(4, 30, 1), random_points(4, 1)):
        before = points.clone()
        kmeans(points, 1)
        assert torch.equal(points, before)


# no host sync, no mix of devices, bounded memory

def test_on_a_pretended_gpu():
    with FakeTensorMode():
        images = torch.empty(600, 48, 48, dtype=torch.uint8, device='cuda')
        saliency = torch.empty(600, 48, 48, dtype=torch.uint8, device='cuda')
        for feature in ('intensity', 'attention'): points,pixels = eq1_features(images, saliency, feature=feature, keep=.3)
        assert eq1_features(images.float(), saliency.float(), keep=1)[0].shape==(600, 2304, 3)
        weights = torch.empty(600, 691, device='cuda')
        start = kmeans_plus_plus(points, 3, weights, torch.Generator())
        for w in (None, weights):
            for c in (start, start[0]): found = lloyd(points, c, w)
        maps = cluster_maps(found.labels, pixels, (48, 48))
        for o in (points, pixels, start, *found, maps): assert o.device.type=='cuda'
        assert maps.shape==(600, 48, 48) and maps.dtype==torch.uint8 and found.labels.dtype==torch.int64
        # the pretended GPU does notice both mistakes
        with pytest.raises(Exception, match='device'): lloyd(points, start.cpu())
        with pytest.raises(DataDependentOutputException): check_points(points)

@pytest.mark.parametrize('weighted', [False, True])
def test_memory_does_not_grow_with_the_images(weighted, peak_memory):
    def extra(b):
        points,start = random_points(b, 200),random_points(b, 3)
        weights = torch.rand(b, 200) if weighted else None
        with peak_memory() as memory: found = lloyd(points, start, weights, n_iter=2, compiled=False)
        return memory.peak-sum(o.untyped_storage().nbytes() for o in found)
    few,many = extra(1500),extra(6000)
    assert many<6.3*2**20 and many<1.5*few

def test_feature_memory_does_not_grow_with_the_images(peak_memory):
    def extra(b):
        images = torch.zeros(b, 48, 48, dtype=torch.uint8)
        with peak_memory() as memory: found = eq1_features(images, torch.rand(b, 48, 48), keep=.3)
        return memory.peak-sum(o.untyped_storage().nbytes() for o in found)-b*48*48*4
    few,many = extra(500),extra(2000)
    assert many<9*2**20 and many<1.1*few


# features, start, names, maps

def test_features_are_eq1():
    "The distance of two points is Dist of Eq. 1, written out"
    images,saliency = torch.rand(2, 10, 14),torch.rand(2, 10, 14)
    points,pixels = eq1_features(images, saliency, keep=.4)
    assert points.dtype==torch.float32 and pixels.dtype==torch.int64 and points.shape==(2, 56, 3)
    a,b = pixels[1, 5].item(),pixels[1, 50].item()
    (i,j),(k,l) = divmod(a, 14),divmod(b, 14)
    dist = math.sqrt((1.5*(i-k)/9)**2 + (1.5*(j-l)/13)**2 + (1.2*(images[1, i, j]-images[1, k, l]))**2)
    assert math.isclose((points[1, 5]-points[1, 50]).norm(), dist, rel_tol=1e-5)
    raw,_ = eq1_features(images, saliency, keep=.4, spatial_weight=2., intensity_weight=3., raw=True)
    torch.testing.assert_close(raw[1, 5], torch.tensor([2.*j, 2.*i, 3*255*images[1, i, j]]))

def test_attention_as_the_third_feature():
    images,saliency = torch.rand(3, 8, 8),torch.rand(3, 8, 8)*5-2
    points,_ = eq1_features(images, saliency, keep=1, feature='attention')
    third = points[..., 2]/1.2
    assert torch.allclose(third.amin(1), torch.zeros(3)) and torch.allclose(third.amax(1), torch.ones(3))
    assert torch.equal(third.argsort(1), saliency.flatten(1).argsort(1))

def test_bytes_and_floats_agree():
    images = torch.randint(0, 256, (5, 20, 20), dtype=torch.uint8)
    saliency = torch.randint(0, 256, (5, 20, 20), dtype=torch.uint8)
    a,b = eq1_features(images, saliency, keep=.3),eq1_features(images/255, saliency.float(), keep=.3)
    torch.testing.assert_close(a, b)

def test_draws_are_points_and_repeat():
    points,weights = random_points(200, 50),torch.rand(200, 50).round()
    drawn,again = (kmeans_plus_plus(points, 4, weights, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(drawn, again)
    hit = (drawn[:, :, None]==points[:, None]).all(-1)
    assert hit.any(-1).all() and (hit.sum(1)<=1).all() # each drawn once
    assert (weights[:, None]*hit).sum(-1).eq(1).all() # no point of weight zero

@pytest.mark.parametrize('weight,expected', [(1., .8), (.25, .5)])
def test_draws_follow_weight_times_squared_distance(weight, expected):
    "From a point at 0, a point at 2 is drawn four times as often as one at 1, unless it weighs less"
    points,weights = torch.tensor([[0.], [1], [2]]).repeat(20000, 1, 1),torch.tensor([1e6, 1, weight]).repeat(20000, 1)
    drawn = kmeans_plus_plus(points, 2, weights)
    share = (drawn[drawn[:, 0, 0]==0, 1, 0]==2).float().mean()
    assert abs(share-expected)<.02

@pytest.mark.parametrize('number', [0., 1-2**-24])
def test_smallest_and_largest_random_number(number, monkeypatch):
    monkeypatch.setattr(torch, 'rand', lambda *size, **kwargs: torch.full(size, number))
    points,weights = torch.randn(50, 30, 3),torch.randn(50, 30).abs()
    weights[:, :2] = weights[:, -2:] = 0
    drawn = kmeans_plus_plus(points, 2, weights)
    assert not (drawn[:, :, None]==points[:, None, [0, 1, -2, -1]]).all(-1).any()

def test_shared_centroids_find_and_name_regions():
    middles = torch.tensor([[1.2, .4, .3], [.2, .4, .3], [.7, 1.2, .9]])
    points = (middles.repeat_interleave(40, 0)+.03*torch.randn(30, 120, 3))[:, torch.randperm(120)]
    for seed in range(5):
        shared = shared_centroids(points, 3, seed=seed)
        torch.testing.assert_close(shared, middles[[1, 2, 0]], atol=.01, rtol=0)
    torch.testing.assert_close(shared_centroids(points.flip(0), 3), shared, atol=1e-3, rtol=0)
    labels = kmeans(points, centroids=shared).labels
    assert torch.equal(labels, torch.cdist(points, middles[[1, 2, 0]]).argmin(-1))
    left_only = (points[..., 0]<.5).float()
    torch.testing.assert_close(shared_centroids(points, 1, weights=left_only)[0], middles[1], atol=.01, rtol=0)

def test_shared_centroids_are_the_best_of_their_starts():
    blobs = (torch.rand(8, 2)*4).repeat_interleave(30, 0)[None]+.05*torch.randn(3, 240, 2)
    def mean_inertia(n_init):
        fits = [lloyd(blobs.flatten(0, 1)[None], shared_centroids(blobs, 8, n_init=n_init, seed=seed), n_iter=0) for seed in range(8)]
        return torch.cat([f.inertia for f in fits]).mean()
    assert mean_inertia(8)<.8*mean_inertia(1)

def test_maps_put_labels_where_pixels_were():
    images,saliency = torch.rand(4, 9, 13),torch.rand(4, 9, 13)
    points,pixels = eq1_features(images, saliency, keep=.3)
    labels = torch.randint(0, 5, pixels.shape)
    for l in (labels, labels.byte()):
        maps = cluster_maps(l, pixels, (9, 13))
        assert maps.dtype==torch.uint8 and maps.shape==(4, 9, 13)
        assert torch.equal(maps.flatten(1).gather(1, pixels).long(), labels+1)
        assert ((maps>0).flatten(1).sum(1)==pixels.shape[1]).all()


# mistakes

@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
def test_values_that_are_no_good(bad):
    points = random_points(3, 10)
    broken = points.clone()
    broken[1, 4, 2] = bad
    with pytest.raises(ValueError, match='points hold NaN or infinite'): kmeans(broken, 2)
    with pytest.raises(ValueError, match='points hold NaN or infinite'): shared_centroids(broken, 2)
    with pytest.raises(ValueError, match='centroids hold NaN or infinite'): kmeans(points, centroids=broken[1, 3:6])
    with pytest.raises(ValueError, match='weights hold NaN or infinite'): kmeans(points, 2, weights=broken[..., 2])
    saliency = torch.rand(3, 6, 6)
    saliency[2, 0, 0] = bad
    with pytest.raises(ValueError, match='points hold NaN or infinite'): kmeans(eq1_features(torch.rand(3, 6, 6), saliency, keep=.3)[0], 2)

def test_mistakes():
    points,images = random_points(3, 10),torch.rand(3, 6, 6)
    for run in (kmeans, kmeans_plus_plus, shared_centroids):
        with pytest.raises(ValueError, match='n_clusters=11, but only 10 attention pixels were kept: lower n_clusters or raise keep'): run(points, 11)
        with pytest.raises(ValueError, match='n_clusters=0'): run(points, 0)
        with pytest.raises(ValueError, match='give .images, points, features.'): run(points[0], 2)
        with pytest.raises(ValueError, match='weights are'): run(points, 2, weights=torch.ones(10))
    with pytest.raises(ValueError, match='either n_clusters or centroids'): kmeans(points)
    with pytest.raises(ValueError, match='either n_clusters or centroids'): kmeans(points, 3, points[:, :3])
    with pytest.raises(ValueError, match='centroids are'): kmeans(points, centroids=points[:2, :3])
    with pytest.raises(ValueError, match='centroids are'): kmeans(points, centroids=points[0, :3, :2])
    with pytest.raises(ValueError, match='lowest of the weights is -1'): kmeans(points, 2, weights=-torch.ones(3, 10))
    with pytest.raises(ValueError, match='chunk is 0'): kmeans(points, 2, chunk=0)
    for keep in (0, -1, 1.01):
        with pytest.raises(ValueError, match='keep is'): eq1_features(images, images, keep=keep)
    with pytest.raises(ValueError, match="choose 'intensity' or 'attention'"): eq1_features(images, images, feature='gray', keep=.3)
    with pytest.raises(ValueError, match='give both as'): eq1_features(images, images[:, :5], keep=.3)
    with pytest.raises(ValueError, match='give both as'): eq1_features(images[:, None], images[:, None], keep=.3)
    with pytest.raises(ValueError, match='give both as'): cluster_maps(torch.zeros(3, 10), torch.zeros(3, 9), (6, 6))
    with pytest.raises(ValueError, match='do not fit'): cluster_maps(torch.zeros(3, 10), torch.zeros(3, 10), (3, 3))

def test_centroids_in_the_second_place():
    points,start = pixel_points()
    same(kmeans(points, start), kmeans(points, centroids=start))

@pytest.mark.parametrize('points, weights', [(1e14, 1e13), (1e15, 10.), (-1e14, 1e13)])
def test_weighted_sums_that_float32_cannot_hold_are_refused(points, weights):
    with pytest.raises(ValueError, match='points as large as .* have weights as large as'):
        kmeans(torch.full((2, 9, 3), points), 2, weights=torch.full((2, 9), weights))

def test_the_largest_weighted_points_have_an_inertia():
    points = torch.rand(2, 9, 3, generator=torch.Generator().manual_seed(0))*1e15
    assert kmeans(points, 2, weights=torch.ones(2, 9), n_iter=0).inertia.isfinite().all()

@pytest.mark.parametrize('shape', [(1, 0, 6), (3, 6, 0)])
def test_images_without_pixels_are_refused(shape):
    with pytest.raises(ValueError, match='no pixels'): eq1_features(torch.zeros(shape), torch.zeros(shape), keep=.3)
