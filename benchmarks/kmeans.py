"k-means of many small sets: one call for all of them against a loop over libraries"
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor

from fer_perturb.kmeans import eq1_features, kmeans_plus_plus, lloyd
from fer_perturb.perturb import Scheme
from fer_perturb.saliency import saliency_maps

from .common import Goal, Table, available, bench_extra, compare, ratio, spread
from .training import frozen_attention

n_clusters,n_iter = 3,10

# competitors: (b,n,d) points and (b,k,d) start -> (b,k,d) centroids after `n_iter` steps

def naive_torch(points, start):
    centroids = start
    for _ in range(n_iter):
        one_hot = F.one_hot(torch.cdist(points, centroids).argmin(-1), n_clusters).float()
        total = one_hot.sum(1)[...,None]
        centroids = torch.where(total>0, torch.einsum('bnk,bnd->bkd', one_hot, points)/total, centroids)
    return centroids

def scikit_learn(points, start):
    fit = lambda p, s: KMeans(n_clusters, init=s, n_init=1, max_iter=n_iter, tol=0, algorithm='lloyd').fit(p).cluster_centers_
    return np.stack([fit(p, s) for p,s in zip(points.numpy(), start.numpy())])

def scipy(points, start):
    return np.stack([kmeans2(p, s, iter=n_iter, minit='matrix')[0] for p,s in zip(points.numpy(), start.numpy())])

def fast_pytorch_kmeans(points, start):
    from fast_pytorch_kmeans import KMeans as FastKMeans
    def fit(p, s):
        model = FastKMeans(n_clusters, max_iter=n_iter, tol=0)
        model.fit(p, centroids=s)
        return model.centroids
    return torch.stack([fit(p, s) for p,s in zip(points, start)])

def faiss(points, start):
    from faiss import Kmeans
    def fit(p, s):
        model = Kmeans(p.shape[1], n_clusters, niter=n_iter, min_points_per_centroid=1, max_points_per_centroid=len(p))
        model.train(p, init_centroids=s)
        return model.centroids
    return np.stack([fit(p, s) for p,s in zip(points.numpy(), start.numpy())])

def flash_kmeans(points, start):
    from flash_kmeans.torch_fallback import batch_kmeans_Euclid_torch_native # its Triton kernels need a GPU
    return batch_kmeans_Euclid_torch_native(points, n_clusters, max_iters=n_iter, init_centroids=start)[1]

def ours(points, start, compiled): return lloyd(points, start, n_iter=n_iter, compiled=compiled).centroids

# name: (function, module it needs)
competitors = {'scikit-learn, loop': (scikit_learn, 'sklearn'), 'ours, plain': (partial(ours, compiled=False), 'torch'),
               'ours, compiled': (partial(ours, compiled=True), 'torch'), 'scipy `kmeans2`, loop': (scipy, 'scipy'),
               'naive torch, all images at once': (naive_torch, 'torch'), 'fast_pytorch_kmeans, loop': (fast_pytorch_kmeans, 'fast_pytorch_kmeans'),
               'faiss, loop': (faiss, 'faiss'), "flash-kmeans, torch path": (flash_kmeans, 'flash_kmeans')}

def inertia(
    points:Tensor, # (b,n,d)
    centroids, # (b,k,d), array or tensor
)->float: # mean over images, in float64
    "How good the centroids are, judged alike for all"
    centroids = torch.as_tensor(np.asarray(centroids)).double()
    return torch.cdist(points.double(), centroids).square().amin(-1).sum(1).mean().item()

def attention_points(
    data, # FERData
)->tuple: # points (b,n,3) of Eq. 1, k-means++ start (b,k,3)
    torch.manual_seed(0) # of the attention model
    points,_ = eq1_features(data.images, saliency_maps(frozen_attention(), data.images[:,None]), Scheme.keep)
    return points,kmeans_plus_plus(points, n_clusters, generator=torch.Generator().manual_seed(0))

@contextmanager
def threads(
    n:int, # of torch and of every OpenMP and BLAS library
):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        with threadpool_limits(n): yield
    finally: torch.set_num_threads(before)

def table(
    points:Tensor, # (b,n,d)
    start:Tensor, # (b,k,d)
    rounds:int, # turns of each
)->Table:
    found,excuses = {},{}
    for name,(run,module) in competitors.items():
        if not available(module): excuses[name] = bench_extra
        else:
            try: found[name] = inertia(points, run(points, start)) # also warms up and compiles
            except Exception as e: excuses[name] = f'failed: {type(e).__name__}: {e}' # somebody else's library, on somebody's machine
    def one_go(name):
        competitors[name][0](points, start)
        return len(points)
    times = compare({name: partial(one_go, name) for name in found}, rounds)
    base = times['scikit-learn, loop']
    faster = {name: ratio(base, t) for name,t in times.items()}
    rows = [(name, spread([1000*t for t in times[name]]), faster[name], f'{found[name]:.5f}') if name in times else (name, excuses[name], '', '')
            for name in competitors]
    n_threads = torch.get_num_threads()
    label = f'k-means, {n_threads} thread{"s"*(n_threads>1)}'
    others = [name for name in times if not name.startswith('ours')]
    fastest = min(others, key=lambda name: spread(times[name]).median)
    ours = {name: wanted for name,wanted in {'ours, plain': 20, 'ours, compiled': 40}.items() if name in times}
    goals = [Goal(f'{label}: scikit-learn / {name}', faster[name], at_least=wanted) for name,wanted in ours.items()]
    goals += [Goal(f'{label}: fastest other ({fastest}) / {name}', ratio(times[fastest], times[name]), at_least=1) for name in ours]
    differences = [abs(found[name]/found['scikit-learn, loop']-1) for name in ours]
    goals += [Goal(f"{label}: relative difference of our inertia from scikit-learn's", spread(differences), at_most=1e-4)]
    return Table(label, ('what', 'ms an image', 'faster than scikit-learn by', 'mean inertia'), rows, goals=goals)

def tables(
    settings, # `Settings`
)->list: # of `Table`
    "As many threads as torch takes, then one"
    points,start = attention_points(settings.faces(settings.pick(256, 32)))
    results = []
    for n in sorted({torch.get_num_threads(), 1}, reverse=True):
        with threads(n): results.append(table(points, start, settings.pick(7, 1)))
    b,n,d = points.shape
    results[-1].note = (f'{b} images × {n} points × {d} features, k = {n_clusters}, {n_iter} Lloyd steps of all from the same k-means++ start, '
        'tolerance 0 (scikit-learn and fast_pytorch_kmeans may stop earlier where nothing moves any more). Compiling is not in the time. '
        'The inertia is computed from the centroids that each returns, in float64.')
    return results
