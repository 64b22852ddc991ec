"Grids under a real Ray, where it is installed"
import importlib.util
import json
import os
import subprocess
import sys

import pytest

from fer_perturb.runs import find_grid

pytestmark = pytest.mark.skipif(importlib.util.find_spec('ray') is None, reason="needs pip install 'fer_perturb[distributed]'")

@pytest.fixture
def cluster(tmp_path):
    "Two workers on this machine"
    environment = os.environ | dict(RAY_ADDRESS='127.0.0.1:6399', OMP_NUM_THREADS='1', RAY_DEDUP_LOGS='0',
                                    RAY_USAGE_STATS_ENABLED='0', FER_PERTURB_CACHE=str(tmp_path/'cache'))
    def ray(*words): return subprocess.run([sys.executable, '-m', 'ray.scripts.scripts', *words], env=environment, check=True, capture_output=True)
    ray('start', '--head', '--node-ip-address=127.0.0.1', '--port=6399', '--num-cpus=2', '--include-dashboard=false', '--disable-usage-stats')
    yield environment
    ray('stop', '--force')

def run(folder, environment, *words):
    command = [sys.executable, '-m', 'fer_perturb', 'run', 'toy', '--results', str(folder/'results'), *words]
    done = subprocess.run(command, env=environment | dict(FER_PERTURB_RUNS=str(folder/'work')), capture_output=True, text=True, timeout=600)
    assert done.returncode==0, done.stderr
    return done.stdout

def test_same_results(cluster, tmp_path):
    "Two workers of a cluster give what one process gives, and each has trained some of the runs"
    run(tmp_path/'alone', cluster)
    said = run(tmp_path/'ray', cluster, '--ray')
    assert '10 of 10 runs are finished' in said
    assert len({line.split('pid=')[1].split(')')[0] for line in said.splitlines() if 'work pid=' in line})==2
    for r in find_grid('toy'):
        a,b = (json.loads((tmp_path/name/f'results/runs/{r.name}.json').read_text()) for name in ('alone', 'ray'))
        assert a['curve']==b['curve'] and a['scores']==b['scores']

def test_stops(cluster, tmp_path):
    "When time is up, the runs in hand end after their epoch and keep it"
    said = run(tmp_path/'short', cluster, '--ray', '--hours', '0.004')
    assert 'runs left' in said
    assert '10 of 10 runs are finished' in run(tmp_path/'short', cluster, '--ray')
