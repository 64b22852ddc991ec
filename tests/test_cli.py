"The command: help at once, one sentence for a mistake, and the whole scheme on a few faces"
import subprocess
import sys

import pytest
from PIL import Image

from fer_perturb.cli import main
from fer_perturb.readers import save_faces
from fer_perturb.toyfaces import toy_faces


def test_help_loads_no_torch():
    code = "import sys; from fer_perturb import cli\ntry: cli.main(['demo', '--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert '--landmarks' in out and out.endswith('False\n')

@pytest.mark.parametrize('options,said', [(['--data', 'nowhere.zip'], 'nothing at nowhere.zip'), (['--arch', 'resnet-18'], 'did you mean resnet18'),
                                          (['--epochs', '0'], 'at least one')])
def test_a_mistake_is_one_sentence(options, said, tmp_path, capsys):
    assert main(['demo', '--out', str(tmp_path), *options])==2
    err = capsys.readouterr().err
    assert said in err and err.startswith('fer-perturb: ') and err.count('\n')==1

def test_demo_on_a_set_of_ones_own(tmp_path, capsys):
    save_faces(toy_faces(140, seed=3), tmp_path/'set.npz')
    out = tmp_path/'out'
    assert main(['demo', '--data', str(tmp_path/'set.npz'), '--epochs', '1', '--out', str(out)])==0
    printed = capsys.readouterr().out
    for text in ('112 Training, 14 PublicTest, 14 PrivateTest', 'Baseline: 2 epochs', 'Predictor: 1 epochs', 'centre_prior', 'macro F1', 'P − baseline', 'surprise', str(out)):
        assert text in printed, text
    assert all(Image.open(out/f'{name}.png').size[0]>100 for name in ('clusters', 'scheme', 'classes', 'confusion'))
