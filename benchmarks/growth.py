"Time and memory at 1, 2, 4 and 8 times the images, each size in a process of its own"
import json
import sys
import time

from .common import Goal, Table, child, held_memory, peak_memory, ratio, spread

sizes = (1, 2, 4, 8)

def lloyd_job(n):
    import torch
    from fer_perturb.kmeans import lloyd
    points,start = torch.rand(n, 691, 3),torch.rand(3, 3)
    return lambda: list(lloyd(points, start, compiled=False))

def recluster_job(n):
    import torch
    from fer_perturb.perturb import Clusterer
    images,saliency = (torch.randint(0, 256, shape, dtype=torch.uint8) for shape in ((n, 1, 48, 48), (n, 48, 48)))
    clusterer = Clusterer(None)
    return lambda: [clusterer.fit(images, saliency)(images, saliency)]

def loader_job(n):
    import torch
    from fer_perturb.augment import EraseRandom, FaceAugment
    from fer_perturb.data import FERData
    from fer_perturb.loaders import face_block
    data = FERData(torch.randint(0, 256, (n, 48, 48), dtype=torch.uint8), torch.arange(n)%7, torch.arange(n)<128)
    loader = face_block(batch_tfms=[FaceAugment(), EraseRandom()]).dataloaders(data, bs=128, device='cpu').train
    def run():
        for _ in loader: pass
        return []
    return run

# name: (makes the data and returns what is measured, whose results are listed; images at size 1)
jobs = {'k-means (`lloyd`, plain)': (lloyd_job, 3600), 're-clustering (`Clusterer`)': (recluster_job, 3600), 'loader, augmented': (loader_job, 4000)}

def measure(
    name:str, # key of `jobs`
    scale:float, # times the images of size 1
)->dict: # seconds, and bytes held at most beyond data and result
    "One job"
    make,base = jobs[name]
    make(256)() # threads and libraries start
    run = make(int(scale*base))
    held,start = held_memory(),time.perf_counter()
    results = run()
    seconds,size = time.perf_counter()-start,sum(r.numel()*r.element_size() for r in results)
    return dict(seconds=seconds, beyond=max(0, peak_memory()-held-size))

def tables(
    settings, # `Settings`
)->list: # of `Table`
    rows,goals,unit = [],[],settings.pick(1, 0.1)
    rounds = [{s: child('-m', 'benchmarks.growth', str(s*unit)) for s in sizes} for _ in range(settings.pick(3, 1))]
    for name,(_,base) in jobs.items():
        seconds,beyond = ({s: [found[s][name][key] for found in rounds] for s in sizes} for key in ('seconds', 'beyond'))
        megabytes = {s: [b/2**20 for b in beyond[s]] for s in sizes}
        rows += [(name, f'{int(s*unit*base):,}', spread(seconds[s]), ratio(seconds[s], seconds[1]), spread(megabytes[s])) for s in sizes]
        last = sizes[-1]
        goals += [Goal(f'{name}: time at {last}× / ({last} × time at 1×)', ratio(seconds[last], [last*t for t in seconds[1]]), at_most=1.1),
                  Goal(f'{name}: MB more at {last}× than at 1×', spread([a-b for a,b in zip(megabytes[last], megabytes[1])]), at_most=32)]
    return [Table('Growth', ('what', 'images', 'seconds', 'time / time at 1×', 'peak memory beyond data and result, MB'), rows,
                  'Each size in a process of its own, which runs every job once, after a warm-up with 256 images. Memory is the most that was held while it ran, '
                  'minus what was held before, with the data loaded, and minus the result.', goals)]

if __name__=='__main__': print(json.dumps({name: measure(name, float(sys.argv[1])) for name in jobs}))
