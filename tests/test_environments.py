"Other people's machines: no home to write to, no display, no compiler, no network, spaces and letters in paths, processes that are spawned"
import os
import subprocess
import sys

program = """import multiprocessing, socket
from pathlib import Path

class NoNetwork(socket.socket):
    def connect(self, address):
        if self.family!=socket.AF_UNIX: raise AssertionError(f'asked for {address}')
        return super().connect(address)
socket.socket = NoNetwork

if __name__=='__main__':
    multiprocessing.set_start_method('spawn')
    from fer_perturb.learner import perturb_learner
    from fer_perturb.loaders import face_block
    from fer_perturb.readers import load_faces
    from fer_perturb.toyfaces import toy_faces
    from fer_perturb.weights import load_model, save_model
    from fer_perturb.writers import write_csv
    write_csv(toy_faces(70, seed=1), 'Gesichter é.csv')
    faces = load_faces('Gesichter é.csv')
    dls = face_block(faces.vocab).dataloaders(faces, bs=8, device='cpu', num_workers=1)
    learn = perturb_learner(dls, 'test_resnet')
    with learn.no_bar(), learn.no_logging(): learn.fit_quick(1, checkpoint='Stand ü')
    save_model(learn, 'Modell ß.safetensors')
    again = load_model('Modell ß.safetensors')
    with again.no_bar(): answer = again.predict(faces[0].image)[0]
    with learn.no_bar(): learn.show_results()
    print(answer in faces.vocab, Path('Stand ü/training.pt').exists())"""

def test_a_bare_machine(tmp_path):
    folder = tmp_path/'größe 1 ключ'
    folder.mkdir()
    (folder/'program.py').write_text(program, encoding='utf-8')
    home = tmp_path/'file'
    home.write_text('no folder')
    env = dict(PATH=os.environ['PATH'], HOME=str(home/'nobody'), LANG='C', CC='no-compiler', PYTHONPATH=os.pathsep.join(sys.path), OMP_NUM_THREADS='1',
               MPLCONFIGDIR=str(tmp_path))
    done = subprocess.run([sys.executable, 'program.py'], cwd=folder, env=env, capture_output=True, encoding='utf-8', errors='replace')
    assert done.returncode==0 and done.stdout.split()[-2:]==['True', 'True'], done.stderr
    assert 'cannot be written' in done.stderr and 'the next start reads the source again' in done.stderr
