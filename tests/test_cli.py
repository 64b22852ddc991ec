"The command: help at once, one sentence for a mistake, and the whole scheme on a few faces"
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout

import pandas as pd
import pytest
import torch
from fastcore.xtras import working_directory
from PIL import Image

from fer_perturb import __version__
from fer_perturb.answers import face_probabilities
from fer_perturb.cli import COMMANDS, main
from fer_perturb.demo import covered_lesson
from fer_perturb.export import predict_onnx
from fer_perturb.weights import load_model
from fer_perturb.photos import toy_scene
from fer_perturb.readers import save_faces
from fer_perturb.toyfaces import toy_faces
from fer_perturb.writers import write_kaggle


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
    for text in ('112 Training, 14 PublicTest, 14 PrivateTest', 'Baseline: 2 epochs', 'Predictor: 1 epoch of', 'centre of the frame', 'macro F1', 'P − baseline', 'surprise',
                 'surgical mask', 'sunglasses', 'What to make of it: ', str(out)):
        assert text in printed, text
    assert all(Image.open(out/f'{name}.png').size[0]>100 for name in ('clusters', 'scheme', 'classes', 'covered', 'confusion'))
    lines = [line for line in printed.splitlines() if line.startswith('  epoch ')]
    assert len(lines)==4 and lines[1].startswith('  epoch 2 of 2: ') and not set('\r█') & set(printed) # a log, not a progress bar

def test_what_the_demo_makes_of_its_numbers():
    def said(**rows): return covered_lesson(pd.DataFrame(rows, ['baseline', 'P', 'P − baseline', 'from', 'to']).T, 4)
    worse = said(clean=(90, 80, -10, -13, -7), mask=(30, 40, 10, 6, 14), sunglasses=(70, 69, -1, -3, 1))
    assert 'on clean faces P is 10.0 points below' in worse and 'under mask P is 10.0 points above' in worse and 'sunglasses P and its baseline are level' in worse
    assert 'Why lower on clean faces' in worse and 'for 8 epochs and P for 4' in worse and 'paid under mask.' in worse
    assert 'mask 60.0 from the baseline, 40.0 from P' in worse
    level = said(clean=(90, 91, 1, -1, 3), mask=(30, 31, 1, -2, 4))
    assert 'Why' not in level and 'paid under neither cover' in level

def test_version_and_unknown_words(capsys):
    for words,status,said in ((['--version'], 0, f'fer-perturb {__version__}'), (['predikt'], 2, "'predikt'"),
                              (['train'], 2, 'data'), (['train', 'faces', '--form', 'q'], 2, "'q'"), (['predict', 'a.png', '--jso'], 2, '--jso')):
        with pytest.raises(SystemExit) as e: main(words)
        assert e.value.code==status and said in ''.join(capsys.readouterr())

@pytest.mark.parametrize('words, said', [(['predit', 'a.png'], ['did you mean predict?']), (['predict', 'a.png', '--jsn'], ['did you mean --json?', 'usage: fer-perturb predict']),
    (['explain', 'a.png', 'b.png'], ['unrecognized arguments: b.png', 'usage: fer-perturb explain']), (['runs', '--Results', 'x'], ['did you mean --results?'])])
def test_a_misspelt_word_is_guessed_at(words, said, capsys):
    with pytest.raises(SystemExit) as left: main(words)
    err = capsys.readouterr().err
    assert left.value.code==2 and all(s in err for s in said), err

def test_nothing_asked_prints_the_help(capsys):
    assert main([])==1 and 'explore' in capsys.readouterr().out

def test_a_training_that_could_not_begin_is_not_in_the_way(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    faces = toy_faces(70, seed=3)
    save_faces(faces.part('Training'), 'torn.npz')
    save_faces(faces, 'whole.npz')
    command = 'train {} --arch test_resnet --epochs 1 --form plain'.format
    assert main(command('torn.npz').split())==2
    assert 'is marked PublicTest' in capsys.readouterr().err and not list(tmp_path.glob('*.training'))
    (tmp_path/'model.safetensors.training').mkdir()
    (tmp_path/'model.safetensors.training'/'settings.json').write_text('{"epochs": 99}') # of a training that was killed in its first epoch
    assert main(command('whole.npz').split())==0
    assert '1 × 56 images: so few batches (1) teach a network little; with 500 epochs' in capsys.readouterr().out

def test_help_of_every_command_loads_no_torch():
    code = ("import sys; from fer_perturb import cli\n"
            "for name in cli.COMMANDS:\n    try: cli.main([name, '--help'])\n    except SystemExit: pass\n"
            "print('torch' in sys.modules, 'fastai' in sys.modules)")
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert out.count('usage: ')==len(COMMANDS)>=13 and out.endswith('False False\n')

@pytest.mark.parametrize('words,said', [
    ('predict photo.jpg', 'no image at photo.jpg'), ('predict photo.jpg --model none.pkl', 'no model at none.pkl'),
    ('predict face.png --model text.pkl', 'text.pkl is no model that can be loaded'), ('predict face.png --model face.png', 'ends in .pkl'),
    ('explain face.png --model text.pkl --out why.gif', 'why.gif does not end in .png'), ('evaluate text.pkl nowhere', 'nothing at nowhere'),
    ('evaluate none.pkl faces.npz', 'no model at none.pkl'), ('export none.pkl', 'no model at none.pkl'),
    ('export text.pkl --out text.pkl', 'does not end in .onnx'), ('train nowhere.zip', 'nothing at nowhere.zip'),
    ('train faces.npz --save text.pkl', 'text.pkl exists'), ('train faces.npz --save model.h5', 'model.h5 does not end in'),
    ('train faces.npz --arch resnet-18', 'did you mean resnet18'), ('train faces.npz --epochs 0', 'at least one'),
    ('train faces.npz --device gpu', "no device 'gpu'"), ('data faces.npz --to text.pkl', 'text.pkl exists'),
    ('run toy --device gpu', "no device 'gpu'")])
def test_mistakes_of_arguments_are_said_before_any_work(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'text.pkl').write_text('no model')
    Image.new('L', (48,48)).save('face.png')
    save_faces(toy_faces(70), tmp_path/'faces.npz')
    assert main(words.split())==2
    out,err = capsys.readouterr()
    assert err.startswith('fer-perturb: ') and said in err and err.count('\n')==1 and not out

def test_a_reader_that_goes_away_is_no_mistake(tmp_path):
    save_faces(toy_faces(70), tmp_path/'faces.npz')
    code = "import sys; from fer_perturb.cli import main; sys.exit(main(['data', sys.argv[1]]))"
    process = subprocess.Popen([sys.executable, '-c', code, str(tmp_path/'faces.npz')], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read()=='' and process.wait()==141

words = 'train faces --arch test_resnet --epochs 3 --save'.split()

@pytest.fixture(scope='module')
def shop(tmp_path_factory):
    "A folder of toy faces, a model of them whose training was killed and called again, and what that printed"
    folder = tmp_path_factory.mktemp('shop')
    write_kaggle(toy_faces(140, seed=3), folder/'faces')
    with open(folder/'killed.log', 'w') as log:
        process = subprocess.Popen([sys.executable, '-m', 'fer_perturb', *words, 'model.pkl'], cwd=folder, stdout=log, stderr=log)
        while process.poll() is None and not (folder/'model.pkl.training'/'attention.pt').exists(): time.sleep(.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (folder/'model.pkl').exists(), (folder/'killed.log').read_text()
    with working_directory(folder), open('seed.log', 'w') as log, redirect_stderr(log): assert main([*words, 'model.pkl', '--seed', '7'])==2
    with working_directory(folder), open('log', 'w') as log, redirect_stdout(log): assert main([*words, 'model.pkl'])==0
    return folder

def test_a_killed_training_goes_on(shop, monkeypatch, capsys):
    monkeypatch.chdir(shop)
    log = (shop/'log').read_text()
    assert 'is done, it goes on from there' in log and not set('\r█') & set(log) and 'model.pkl: ' in log
    assert 'seed 42, not 7' in (shop/'seed.log').read_text() and not (shop/'model.pkl.training').exists()
    assert main([*words, 'through.pkl', '--quiet'])==0 and 'epoch' not in capsys.readouterr().out
    one,two = (load_model(f'{name}.pkl').model.state_dict() for name in ('model', 'through'))
    assert all(torch.equal(one[name], two[name]) for name in one)

def test_a_model_is_evaluated_and_asked(shop, monkeypatch, capsys):
    monkeypatch.chdir(shop)
    assert main('evaluate model.pkl faces --json'.split())==0
    scores = json.loads(capsys.readouterr().out)
    assert scores['images']==14 and Image.open('confusion.png').size[0]>100
    assert main('evaluate model.pkl faces --part all --quiet'.split())==0
    assert 'all, 140 images' in capsys.readouterr().out
    Image.fromarray(toy_faces(70, seed=9).images[3].numpy()).save('face.png')
    (shop/'text.jpg').write_text('no image')
    assert main('predict face.png --model model.pkl --json'.split())==0
    answer, = json.loads(capsys.readouterr().out)
    assert answer['faces'][0]['box']==[0,0,48,48] and abs(sum(answer['faces'][0]['probabilities'].values())-1)<.01
    assert main('predict face.png text.jpg --model model.pkl --out drawn'.split())==2
    out,err = capsys.readouterr()
    assert 'face.png: a picture of 48×48 pixels' in out and err.startswith('fer-perturb: text.jpg is not a readable image')
    assert Image.open('drawn/1_face.png').size[0]>100
    Image.new('L', (60,60)).save('2_face.png')
    before = (shop/'2_face.png').read_bytes()
    assert main('predict face.png face.png --model model.pkl --out .'.split())==2 and '2_face.png exists' in capsys.readouterr().err
    assert (shop/'2_face.png').read_bytes()==before and not (shop/'1_face.png').exists()
    assert main('predict face.png --model model.pkl --out text.jpg'.split())==2 and 'text.jpg' in capsys.readouterr().err
    assert main('explain face.png --model model.pkl --out face.png'.split())==2 and 'the photo itself' in capsys.readouterr().err
    assert main('explain face.png --model model.pkl'.split())==0 and Image.open('explain.png').size[0]>100
    assert main('predict face.png --model model.pkl --device cuda:9'.split())==2 and 'no device' in capsys.readouterr().err

@pytest.mark.parametrize('to', ['onnx', 'safetensors'])
def test_a_model_in_another_form_gives_the_same_answers(to, shop, monkeypatch, capsys):
    pytest.importorskip('onnxruntime')
    monkeypatch.chdir(shop)
    assert main(f'export model.pkl --to {to}'.split())==0 and f'model.{to}: ' in capsys.readouterr().out
    faces = toy_faces(70, seed=9)[:7]
    expected = face_probabilities(load_model('model.pkl'), faces.images)
    found = predict_onnx('model.onnx', faces) if to=='onnx' else face_probabilities(load_model('model.safetensors'), faces.images)
    assert (found.as_subclass(torch.Tensor)-expected.as_subclass(torch.Tensor)).abs().max()<1e-4

def test_three_faces_none_and_a_text(shop, monkeypatch, capsys):
    pytest.importorskip('dlib')
    monkeypatch.chdir(shop)
    Image.fromarray(toy_scene(['happy', 'surprise', 'neutral'], [70,130,240], [0,50,-100], seed=7).image).save('three.jpg')
    Image.new('RGB', (300,200), 'teal').save('wall.png')
    assert main('predict three.jpg --model model.pkl --out drawn'.split())==0
    out = capsys.readouterr().out
    assert '3 faces found' in out and out.count(' %')+out.count('%')>=9 and Image.open('drawn/1_three.png').size[0]>300
    assert main('predict wall.png --model model.pkl'.split())==1 and 'no face found' in capsys.readouterr().out
    assert main('explain wall.png --model model.pkl --out none.png'.split())==1 and not (shop/'none.png').exists()
    capsys.readouterr()
    assert main('predict three.jpg wall.png nowhere.jpg --model model.pkl --json'.split())==2
    answers = json.loads(capsys.readouterr().out)
    assert [len(a.get('faces', '')) for a in answers]==[3,0,0] and 'no image at nowhere.jpg' in answers[2]['error']

@pytest.mark.parametrize('words', [['predict', 'a\x7f\x1b[31m'], ['figure', '1', 'a\x7f\x1b[31m'], ['data', 'a\x7f\x1b[31m'], ['demo', '--size', 'a\x7f\x1b[31m']])
def test_no_word_commands_the_terminal(words, capsys):
    try: status = main(words)
    except SystemExit as e: status = e.code
    said = ''.join(capsys.readouterr())
    assert status==2 and r'a\x7f\x1b[31m' in said and said.replace('\n', '').isprintable()

def test_no_name_commands_the_terminal(shop, monkeypatch, capsys):
    monkeypatch.chdir(shop)
    odd = os.fsdecode(b'a\x7f\x1b[31m\xff.png')
    Image.fromarray(toy_faces(70, seed=9).images[3].numpy()).save(odd)
    assert main(['predict', odd, '--model', 'model.pkl', '--json'])==0
    text = capsys.readouterr().out
    assert text.isascii() and text.replace('\n', '').isprintable() and json.loads(text)[0]['photo']==odd
    assert main(['predict', odd, '--model', 'model.pkl'])==0
    assert r'a\x7f\x1b[31m\udcff.png: a picture' in capsys.readouterr().out
    write_kaggle(toy_faces(70, seed=3), shop/'odd set')
    for happy in (shop/'odd set').glob('*/happy'): happy.rename(happy.with_name('hap\x1b[2Jpy'))
    assert main(['data', 'odd set'])==0
    said = capsys.readouterr().out
    assert r'hap\x1b[2Jpy' in said and '\x1b' not in said
