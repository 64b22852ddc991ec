"One training step: precision, CBAM, and the perturbation"
from functools import partial

import timm
import torch
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.progress import ProgressCallback
from torch.profiler import ProfilerActivity, profile as torch_profile

from fer_perturb.attention import add_attention
from fer_perturb.augment import EraseRandom, FaceAugment
from fer_perturb.backbones import create_backbone
from fer_perturb.learner import (BFloat16, attention_learner, face_learner, perturb_learner, precision_callbacks,
                                 quick_augment)
from fer_perturb.loaders import face_block
from fer_perturb.perturb import drop_cluster

from .common import Goal, Table, compare, ratio, spread

backbones = {"timm's ResNet-18": partial(timm.create_model, 'resnet18', in_chans=1, num_classes=7),
             "our `resnet18`": partial(create_backbone, 'resnet18')}

def face_loaders(
    data, # FERData
    bs:int=128, # faces in a batch
    tfms:list=None, # transforms of whole batches; the package's augmentations if None
    device:str='cpu', # of the batches; fastai's own choice if None
): # DataLoaders
    if tfms is None: tfms = [FaceAugment(), EraseRandom()]
    return face_block(data.vocab, data.images.shape[-1], batch_tfms=tfms).dataloaders(data, bs=bs, device=device)

def quick_learner(
    data, # FERData
    arch='slim_resnet18', # name for `create_backbone`, or a network
    device:str=None, # fastai's own choice if None
): # a plain learner, for `fit_quick`
    "Loaders and learner of the quick recipe"
    return face_learner(face_loaders(data, 64, quick_augment(), device), arch)

def resnet18_learner(
    data, # FERData
): # a plain learner with timm's ResNet-18
    return face_learner(face_loaders(data), backbones["timm's ResNet-18"]())

def frozen_attention()->torch.nn.Module: # untrained: what it costs does not depend on its weights
    return add_attention(create_backbone('slim_resnet18'))

class Steps:
    "The training steps of a `Learner`, one at a time and always on the same batch, so without loader"
    def __init__(self,
        learn, # any fastai Learner
    ):
        self.learn = learn
        learn.remove_cb(ProgressCallback)
        learn.epoch,learn.n_epoch,learn.n_iter,learn.dl = 0,1,10**9,learn.dls.train
        learn.create_opt()
        for event in ('before_fit', 'before_epoch', 'before_train'): learn(event)
        self.batch = learn.dl.one_batch()
    def __call__(self)->int: # images
        "One step"
        self.learn.one_batch(0, self.batch)
        return len(self.batch[0])

def with_precision(
    learn, # of `face_learner`
    *callbacks, # classes
): # the same with these callbacks in place of those of `precision_callbacks`
    for callback in precision_callbacks('cpu'): learn.remove_cb(type(callback))
    learn.add_cbs([callback() for callback in callbacks])
    return learn

def learners(
    data, # FERData
    backbone, # callable that returns a new model
)->dict: # {name: Learner}, the plain one first
    "The variants of a training step"
    dls = face_loaders(data)
    return {'plain': face_learner(dls, backbone()), 'plain, float32': with_precision(face_learner(dls, backbone())),
            'plain, float32, channels_last': with_precision(face_learner(dls, backbone()), ChannelsLast),
            'plain, bfloat16, channels_last': with_precision(face_learner(dls, backbone()), ChannelsLast, BFloat16),
            'with CBAM': attention_learner(dls, backbone()), 'perturb': perturb_learner(dls, backbone(), attention=frozen_attention())}

def table(
    name:str, # key of `backbones`
    data, # FERData
    rounds:int, # turns of each
)->Table:
    steps = {variant: Steps(learn) for variant,learn in learners(data, backbones[name]).items()}
    images,clusters,_ = (o.as_subclass(torch.Tensor) for o in steps['perturb'].batch)
    def perturb_only():
        drop_cluster(images, clusters)
        return len(images)
    competitors = steps | {'the perturbation by itself': perturb_only}
    for run in [*competitors.values()]*2: run() # kernels are chosen and memory is laid out
    times = compare(competitors, rounds)
    slower = {variant: ratio(t, times['plain']) for variant,t in times.items()}
    rows = [(variant, spread([len(images)*1000*t for t in seconds]), spread([1/t for t in seconds]), slower[variant]) for variant,seconds in times.items()]
    goals = [Goal(f'{name}: step float32 / bfloat16, channels_last', ratio(times['plain, float32'], times['plain, bfloat16, channels_last']), at_least=1.3),
             Goal(f'{name}: step with CBAM / plain', slower['with CBAM'], at_most=1.15),
             Goal(f'{name}: perturb step / plain', slower['perturb'], at_most=1.03)]
    return Table(f'Training step, {name}', ('step', f'ms for {len(images)} images', 'images/s', 'time / plain'), rows, goals=goals)

def tables(
    settings, # `Settings`
)->list: # of `Table`
    "Two networks of that name: timm's reduces the image to a quarter of its side before the first stage, ours to half"
    data = settings.faces(256, 64)
    results = [table(name, data, settings.pick(rounds, 1)) for name,rounds in zip(backbones, (20, 6))]
    names = ', '.join(type(c).__name__ for c in precision_callbacks('cpu'))
    results[-1].note = ('A step is forward, backward and optimizer on one batch that is there already. "plain" has the callbacks that '
                        f'`precision_callbacks` chooses on this machine: {names}; so do CBAM (after every stage) and perturb (`drop`, frozen attention).')
    return results

def profile(
    settings, # `Settings`
)->str: # table of torch.profiler
    "What remains in a perturb step with timm's ResNet-18"
    learn = perturb_learner(face_loaders(settings.faces(256, 64)), backbones["timm's ResNet-18"](), attention=frozen_attention())
    step = Steps(learn)
    for _ in range(2): step()
    with torch_profile(activities=[ProfilerActivity.CPU]) as p:
        for _ in range(5): step()
    return p.key_averages().table(sort_by='self_cpu_time_total', row_limit=20, max_name_column_width=50)
