"Shared by all tests: a few toy faces, and a cache folder that is thrown away"
import matplotlib
import pytest
import torch
from fastai.torch_core import get_random_states
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

matplotlib.use('Agg')

@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch): monkeypatch.setenv('FER_PERTURB_CACHE', str(tmp_path/'cache'))

@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)

@pytest.fixture
def states_kept(seeded):
    "What follows the test in the program draws what it would have drawn, and cudnn is as fast as it was"
    before = get_random_states()
    yield
    for name,state in get_random_states().items(): assert repr(state)==repr(before[name]), name

@pytest.fixture(scope='session')
def faces():
    from fer_perturb.toyfaces import toy_faces
    return toy_faces(420, seed=5)

@pytest.fixture(scope='session')
def few(faces):
    from fer_perturb.loaders import face_block
    return face_block(faces.vocab).dataloaders(faces[torch.arange(0, 420, 7)], bs=8)

class PeakMemory(TorchDispatchMode):
    "Bytes of tensors that are alive at once, beside those that were there before"
    def __init__(self):
        super().__init__()
        self.live,self.peak = {},0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        old = {o.untyped_storage()._cdata for o in tree_iter((args, kwargs or {})) if isinstance(o, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for o in tree_iter(out):
            if isinstance(o, torch.Tensor) and o.untyped_storage()._cdata not in old:
                self.live[o.untyped_storage()._cdata] = StorageWeakRef(o.untyped_storage()),o.untyped_storage().nbytes()
        self.live = {k: v for k,v in self.live.items() if not v[0].expired()}
        self.peak = max(self.peak, sum(size for _,size in self.live.values()))
        return out

@pytest.fixture
def peak_memory(): return PeakMemory
