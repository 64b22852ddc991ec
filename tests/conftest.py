"Shared by all tests: a few toy faces, and a cache folder that is thrown away"
import matplotlib
import pytest
import torch

matplotlib.use('Agg')

@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch): monkeypatch.setenv('FER_PERTURB_CACHE', str(tmp_path/'cache'))

@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)

@pytest.fixture(scope='session')
def faces():
    from fer_perturb.toyfaces import toy_faces
    return toy_faces(420, seed=5)
