"""Every backbone for a few epochs on FER2013, and the vote of all of them, on PublicTest

`python -m benchmarks.backbones fer2013.zip vgg16 densenet121:4`. A number after the name is the `stem_stride`, 2 if there is none. What has been trained
is kept in the folder `--out`, and another call goes on from there."""
import argparse
from pathlib import Path

from fer_perturb.backbones import create_backbone
from fer_perturb.ensemble import ensemble_learner
from fer_perturb.evaluate import predict_faces, summary_table
from fer_perturb.learner import face_learner
from fer_perturb.readers import load_faces

from .table1 import trained
from .training import face_loaders

names = ('slim_resnet18', 'vgg16', 'densenet121:4', 'dpn68:4', 'slim_resmasking')

def backbone(
    name:str, # 'arch', or 'arch:stem_stride'
    n_out:int, # classes
):
    "A new network"
    arch,_,stride = name.partition(':')
    return create_backbone(arch, n_out=n_out, stem_stride=int(stride or 2))

def main():
    parser = argparse.ArgumentParser('python -m benchmarks.backbones', description=__doc__.splitlines()[0])
    parser.add_argument('data', type=Path, help='FER2013 in any form that load_faces reads')
    parser.add_argument('names', nargs='*', default=names, help='backbones')
    parser.add_argument('--epochs', type=int, default=2)
    parser.add_argument('--seed', type=int, default=42)
    parser.add_argument('--out', type=Path, default=Path('backbones'), help='folder for networks')
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    faces = load_faces(args.data)
    public,learners = faces.part('PublicTest'),{}
    for name in args.names:
        learners[name] = trained(lambda: face_learner(face_loaders(faces, 64, device=None), backbone(name, len(faces.vocab))),
                                 lambda learn: learn.fit_quick(args.epochs), args.out/f'{name.replace(":", "-")}-{args.epochs}-{args.seed}.pth', args.seed)
    members = [*learners.values()]
    if len(members)>1: learners |= {'ensemble': ensemble_learner(members), 'ensemble, fitted': ensemble_learner(members, 'fit')}
    print(summary_table({name: predict_faces(learn, public) for name,learn in learners.items()}, public.labels).to_string())
    if len(members)>1: print('fitted weights:', *(f'{w:.2f}' for w in learners['ensemble, fitted'].model.weights.tolist()))

if __name__=='__main__': main()
