"Two processes train the network of one; one that dies ends the other; wrapped loaders serve clusters, or say that they cannot"
import os
import socket
import subprocess
import sys
import threading
import time
import types

import pytest
import torch
from fastai.vision.all import Callback
from helpers import Attention, Net

from fer_perturb.kmeans import kmeans_plus_plus, lloyd
from fer_perturb.learner import perturb_learner
from fer_perturb.loaders import face_block
from fer_perturb.perturb import ReclusterCallback
from fer_perturb.processes import Processes

program = """import sys, torch
from fastai.vision.all import Callback, set_seed
from torch import nn
from fer_perturb.augment import FaceAugment
from fer_perturb.distributed import processes_ctx
from fer_perturb.learner import BFloat16, perturb_learner
from fer_perturb.loaders import face_block
from fer_perturb.processes import start_processes
from fer_perturb.toyfaces import toy_faces

class Double(Callback):
    "In 64 bits nothing is left of rounding"
    order = 9.9
    def before_batch(self): self.learn.xb = (self.xb[0].double(),)
class Say(Callback):
    def after_epoch(self): print('epoch', self.epoch, flush=True)
class Noise(nn.Module):
    def saliency_maps(self, images, *args):
        asked.append(len(images))
        return (images[:, 0].float()*(1 if images.dtype==torch.uint8 else 255)).byte()

def model(): return nn.Sequential(nn.Conv2d(1, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64, 7))

out,epochs,asked = sys.argv[1],int(sys.argv[2]),[]
torch.set_num_threads(1)
ours = start_processes(20)
set_seed(1+ours.number) # everything random comes from process 0
dls = face_block(batch_tfms=[FaceAugment()]).dataloaders(toy_faces(175), bs=31, device='cpu')
# a few pixels of each face: none lies so near the border of two clusters that sums in another order move it over
learn = perturb_learner(dls, model(), Noise(), perturb='foreign', keep=.03, cbs=[Double(), Say()])
learn.remove_cb(BFloat16)
learn.model.double()
with learn.processes_ctx(), learn.no_bar(), learn.no_logging(): learn.fit_quick(epochs, .01, checkpoint=out+'.kept')
learn.path = learn.path/out
learn.model_dir = '.'
learn.path.mkdir(parents=True, exist_ok=True)
learn.save(f'saved{ours.number}')
torch.save(dict(values=[list(v) for v in learn.recorder.values], losses=[l.item() for l in learn.recorder.losses], asked=asked,
                weights=[v.double() for v in learn.model.state_dict().values()], centroids=learn.recluster.clusterer.centroids,
                clusters=learn.dls.train.data.column('clusters')), f'{out}.{ours.number}.pt')
"""

def started(folder, n, *args):
    "n processes, without a launcher"
    (folder/'program.py').write_text(program)
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    env = os.environ | dict(WORLD_SIZE=str(n), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), PYTHONPATH=os.pathsep.join(sys.path))
    return [subprocess.Popen([sys.executable, folder/'program.py', *args], env=env | dict(RANK=str(i)), cwd=folder, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE) for i in range(n)]

def finished(processes):
    try: ends = [p.communicate(timeout=300) for p in processes]
    finally:
        for p in processes: p.kill()
    assert not any(p.returncode for p in processes), ends
    return ends

def test_two_processes_train_the_network_of_one(tmp_path, monkeypatch):
    two,again = started(tmp_path, 2, 'two', '3'),started(tmp_path, 1, 'again', '3')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['program.py', 'one', '3'])
    exec(compile(program, 'program.py', 'exec'), {'__name__': 'program'})
    finished(two + again)
    one,same,first,second = (torch.load(tmp_path/f'{name}.pt') for name in ('one.0', 'again.0', 'two.0', 'two.1'))
    assert all(torch.equal(a, b) for a,b in zip(one['weights'], same['weights'])) and one['losses']==same['losses'] # one seed, another process
    assert torch.equal(one['clusters'], same['clusters']) and torch.equal(one['centroids'], same['centroids'])
    assert all(torch.equal(a, b) for a,b in zip(first['weights'], second['weights'])) and first['values']==second['values']
    assert torch.equal(first['centroids'], second['centroids']) and torch.equal(first['clusters'], second['clusters'])
    assert torch.allclose(torch.tensor(one['losses']), torch.tensor(first['losses']), atol=1e-5)
    assert torch.allclose(torch.tensor(one['values']), torch.tensor(first['values']), atol=1e-4)
    assert torch.allclose(one['centroids'], first['centroids'], atol=1e-4) and (one['clusters']==first['clusters']).float().mean()>.9999
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a,b in zip(one['weights'], first['weights']))
    assert one['asked'][0]==147 and [first['asked'][0], second['asked'][0]]==[73, 74] # each process its share of the faces
    assert (tmp_path/'two.kept'/'training.pt').exists() and not list(tmp_path.glob('two.kept/.*'))

def test_a_killed_process_ends_the_other_with_a_message(tmp_path):
    first,second = started(tmp_path, 2, 'out', '2000')
    assert any(line.startswith('epoch') for line in first.stdout) # older versions of PyTorch print lines of their own
    second.kill()
    begin = time.monotonic()
    out,err = first.communicate(timeout=60)
    second.communicate()
    assert time.monotonic()-begin<60 and first.returncode and 'gets no answer from another one' in err and 'start all of them again' in err
    assert (tmp_path/'out.kept'/'training.pt').exists()


@pytest.mark.parametrize('cut', [1, 3000, 5000])
def test_parts_of_points_give_the_centroids_of_the_whole(cut):
    "k-means of two threads that exchange what two processes would; a part may be all but empty"
    points,weights = torch.rand(2, 6000, 3, generator=torch.Generator().manual_seed(4)),None
    barrier,slots,results = threading.Barrier(2, timeout=20),[None, None],[None, None]
    class Part(Processes):
        def total(self, values):
            slots[self.number] = values
            barrier.wait()
            both = slots[0]+slots[1]
            barrier.wait()
            return both
        def gather(self, rows):
            slots[self.number] = rows
            barrier.wait()
            both = torch.cat(slots)
            barrier.wait()
            return both
    def work(i):
        part = points[:, :cut] if i==0 else points[:, cut:]
        ours = Part(i, 2)
        starts = kmeans_plus_plus(part, 3, generator=torch.Generator().manual_seed(1), processes=ours)
        results[i] = starts,lloyd(part, starts, processes=ours)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for t in threads: t.start()
    for t in threads: t.join()
    starts = kmeans_plus_plus(points, 3, generator=torch.Generator().manual_seed(1))
    whole = lloyd(points, starts, compiled=False)
    for found,fit in results:
        assert torch.equal(found, starts) and torch.allclose(fit.centroids, whole.centroids, atol=1e-5) and torch.allclose(fit.inertia, whole.inertia, rtol=1e-4)
    assert torch.equal(torch.cat([results[0][1].labels, results[1][1].labels], 1), whole.labels)


class Look(Callback):
    order = ReclusterCallback.order+.4
    def before_fit(self): self.hidden = []
    def before_batch(self):
        if self.training: self.hidden.append((self.xb[0]==.5).float().mean().item())

def p_learner(faces): return perturb_learner(face_block().dataloaders(faces[:140], bs=16, device='cpu'), Net(), Attention(), p=1., cbs=Look())

def test_fastais_distributed_loader_serves_the_clusters(faces, monkeypatch):
    if 'accelerate' not in sys.modules:
        try: import accelerate
        except ImportError: monkeypatch.setitem(sys.modules, 'accelerate', types.SimpleNamespace(Accelerator=type('Accelerator', (), {'__init__': lambda self: None})))
    from fastai.distributed import DistributedDL
    monkeypatch.setattr(DistributedDL, '_broadcast', lambda self, t, rank: list(t)) # fastai's asks for CUDA
    learn = p_learner(faces)
    learn.dls.loaders = [DistributedDL(dl, rank=0, world_size=1) for dl in learn.dls.loaders]
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert min(learn.look.hidden)>.05

def test_a_loader_that_hides_its_table_is_an_error(faces):
    class Hidden:
        "Yields what another loader yields"
        def __init__(self, dl): self.inner = dl
        def __iter__(self): return iter([[x.clone().zero_() if i==1 else x for i,x in enumerate(b)] for b in self.inner])
        def __len__(self): return len(self.inner)
        bs,device,n_inp,after_batch = 16,torch.device('cpu'),2,None
    learn = p_learner(faces)
    learn.dls.loaders = [Hidden(dl) for dl in learn.dls.loaders]
    with learn.no_bar(), learn.no_logging(), pytest.raises(ValueError, match='nothing would be hidden'): learn.fit(1)
