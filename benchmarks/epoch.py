"A whole epoch, plain and perturb; and the price of clustering all training images anew"
import time
from functools import partial

from fer_perturb.learner import face_learner, perturb_learner
from fer_perturb.perturb import Clusterer
from fer_perturb.saliency import saliency_maps

from .common import Goal, Table, compare, ratio, spread
from .training import Steps, backbones, face_loaders, frozen_attention

n_training = 28709 # FER2013's Training part

def one_epoch(
    learn, # any Learner
)->int: # 1
    "Training and validation, without a word"
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    return 1

def epoch_table(
    settings, # `Settings`
)->Table:
    "Real learners, real loaders"
    dls = face_loaders(settings.faces(*settings.pick((4000, 500), (300, 40))))
    backbone = backbones["timm's ResNet-18"]
    plain,perturb = face_learner(dls, backbone()),perturb_learner(dls, backbone(), attention=frozen_attention())
    first = {}
    for name,learn in dict(plain=plain, perturb=perturb).items():
        start = time.perf_counter()
        one_epoch(learn)
        first[name] = time.perf_counter()-start
    times = compare({'plain': partial(one_epoch, plain), 'perturb': partial(one_epoch, perturb)}, settings.pick(3, 1))
    slower = {name: ratio(t, times['plain']) for name,t in times.items()}
    rows = [(name, first[name], spread(t), slower[name]) for name,t in times.items()]
    note = (f'{len(plain.dls.train_ds):,} training and {len(plain.dls.valid_ds):,} validation images. perturb has frozen attention, '
            'whose maps are made in the first epoch, and clusters all training images anew in every epoch; it has no random erasing (its default).')
    return Table("Whole epoch, timm's ResNet-18", ('learner', 'first epoch, s', 'later epochs, s', 'time / plain'), rows, note,
                 [Goal('perturb epoch with re-clustering / plain epoch', slower['perturb'], at_most=1.05)])

def recluster_table(
    settings, # `Settings`
)->Table:
    "All training images, one by one, from saliency that is there already"
    data = settings.faces(settings.pick(2000, 200))
    n = settings.pick(n_training, 1000)
    times_over = -(-n//len(data))
    saliency = saliency_maps(frozen_attention(), data.images[:,None]).repeat(times_over, 1, 1)[:n]
    images = data.images[:,None].repeat(times_over, 1, 1, 1)[:n]
    clusterer = Clusterer(None).fit(images, saliency)
    def recluster():
        clusterer.fit(images, saliency)(images, saliency)
        return n
    steps = {name: Steps(face_learner(face_loaders(settings.faces(256, 64)), backbone())) for name,backbone in backbones.items()}
    competitors = {'re-clustering': recluster} | {f'training {name}': step for name,step in steps.items()}
    for run in [*competitors.values()]*2: run()
    times = compare(competitors, settings.pick(7, 1), at_least=settings.pick(1., 0.2))
    share = {name: spread([100*a/b for a,b in zip(times['re-clustering'], t)]) for name,t in times.items()}
    rows = [(name, spread([n*t for t in times[name]]), '' if name=='re-clustering' else share[name]) for name in times]
    note = (f'{len(data):,} {"real" if settings.data else "toy"} faces, repeated. '
            'The training time is extrapolated from single steps (fast precision, no loader, no validation).')
    return Table(f'Re-clustering {n:,} images', ('what', f's for {n:,} images', 're-clustering is, in %'), rows, note,
                 [Goal(f're-clustering, % of an epoch of {name}', share[f'training {name}'], at_most=2) for name in backbones])

def tables(
    settings, # `Settings`
)->list: # of `Table`
    return [recluster_table(settings), epoch_table(settings)]
