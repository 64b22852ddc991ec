"The command: help at once, one sentence for a mistake, and the whole scheme on a few faces"
import subprocess
import sys

import pandas as pd
import pytest
from PIL import Image

from fer_perturb.cli import main
from fer_perturb.demo import covered_lesson
from fer_perturb.readers import save_faces
from fer_perturb.toyfaces import toy_faces


def test_help_loads_no_torch():
    code = "import sys; from fer_perturb import cli\ntry: cli.main(['demo', '--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert '--landmarks' in out and out.endswith('False\n')

@pytest.mark.parametrize('options,said', [(['--data', 'nowhere.zip'], 'nothing at nowhere.zip'), (['--arch', 'resnet-18'], 'did you mean resnet18'),
                                          (['--epochs', '0'], 'at least one'), (['--out', __file__], 'is a file: give the name of a folder')])
def test_a_mistake_is_one_sentence(options, said, tmp_path, capsys):
    assert main(['demo', '--out', str(tmp_path), *options])==2
    out,err = capsys.readouterr()
    assert said in err and err.startswith('fer-perturb: ') and err.count('\n')==1
    assert 'epoch' not in out # said before any training

def test_demo_on_a_set_of_ones_own(tmp_path, capsys):
    save_faces(toy_faces(140, seed=3), tmp_path/'set.npz')
    out = tmp_path/'out'
    assert main(['demo', '--data', str(tmp_path/'set.npz'), '--epochs', '1', '--out', str(out)])==0
    printed = capsys.readouterr().out
    for text in ('112 Training, 14 PublicTest, 14 PrivateTest', 'Baseline: 2 epochs', 'Predictor: 1 epoch of', 'centre_prior', 'macro F1', 'P − baseline', 'surprise',
                 'surgical mask', 'sunglasses', 'What to make of it: ', str(out)):
        assert text in printed, text
    assert all(Image.open(out/f'{name}.png').size[0]>100 for name in ('clusters', 'scheme', 'classes', 'covered', 'confusion'))
    lines = [line for line in printed.splitlines() if line.startswith('  epoch ')]
    assert len(lines)==4 and lines[1].startswith('  epoch 2 of 2: ') and not set('\r█') & set(printed) # a log, not a progress bar

def test_what_the_demo_makes_of_its_numbers():
    def said(**rows): return covered_lesson(pd.DataFrame(rows, ['baseline', 'P', 'P − baseline', 'from', 'to']).T, 4)
    worse = said(clean=(90, 80, -10, -13, -7), mask=(30, 40, 10, 6, 14), sunglasses=(70, 69, -1, -3, 1))
    assert 'on clean faces P is 10.0 points below' in worse and 'under mask P is 10.0 points above' in worse and 'sunglasses P and its baseline are level' in worse
    assert 'Why lower on clean faces' in worse and '8 epochs to 4' in worse and 'paid under mask.' in worse
    assert 'mask 60.0 from the baseline, 40.0 from P' in worse
    level = said(clean=(90, 91, 1, -1, 3), mask=(30, 31, 1, -2, 4))
    assert 'Why' not in level and 'paid under neither cover' in level
