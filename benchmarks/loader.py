"Images per second: batches from memory against pipelines that open files"
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from fastai.vision.all import (CategoryBlock, DataBlock, GrandparentSplitter, ImageBlock, PILImageBW, RandomErasing, aug_transforms, get_image_files,
                               parent_label)
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from .common import Goal, Table, compare, ratio, spread
from .training import Steps, face_loaders, resnet18_learner

def write_files(
    data, # FERData
    folder:Path, # gets train/<class>/*.jpg and test/<class>/*.jpg, as Kaggle's zip has them
):
    "The same faces as JPEG files"
    for i,(image,label,usage) in enumerate(zip(data.images, data.labels, data.usage)):
        path = folder/('test' if usage else 'train')/data.vocab[label]/f'{i}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(path, quality=95)

def our_loader(
    data, # FERData
    augment:bool, # with the package's default augmentations
):
    return face_loaders(data, tfms=None if augment else []).train

def fastai_loader(
    folder:Path, # of `write_files`
    augment:bool, # flip, rotation, zoom, lighting (no warp) and random erasing of the same strength
    workers:int, # processes
):
    erase = RandomErasing(p=0.5, sh=0.4, max_count=1)
    tfms = [*aug_transforms(max_rotate=10., max_zoom=1.1, max_lighting=0.2, max_warp=0.), erase] if augment else []
    block = DataBlock((ImageBlock(PILImageBW), CategoryBlock), get_items=get_image_files, get_y=parent_label, batch_tfms=tfms,
                      splitter=GrandparentSplitter(train_name='train', valid_name='test'))
    return block.dataloaders(folder, bs=128, num_workers=workers, device='cpu').train

def open_gray(path): return Image.open(path).convert('L')

def torchvision_loader(
    folder:Path, # of `write_files`
    augment:bool, # flip, rotation, zoom, shift, lighting and random erasing of the same strength
    workers:int, # processes, which stay from epoch to epoch
):
    affine = v2.RandomAffine(10, translate=(0.083, 0.083), scale=(1., 1.1), interpolation=v2.InterpolationMode.BILINEAR)
    light = v2.ColorJitter(brightness=0.2, contrast=0.2)
    before = [v2.RandomHorizontalFlip(), v2.RandomApply([affine], p=0.75), v2.RandomApply([light], p=0.75)] if augment else []
    after = [v2.RandomErasing(p=0.5, scale=(0.02, 0.4))] if augment else []
    tfm = v2.Compose([v2.PILToTensor(), *before, v2.ToDtype(torch.float32, scale=True), *after])
    dataset = ImageFolder(folder/'train', transform=tfm, loader=open_gray)
    return DataLoader(dataset, batch_size=128, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers>0)

def epoch(
    loader, # yields batches
)->int: # images it delivered
    return sum(len(batch[0]) for batch in loader)

def training(
    steps, # callable of one training step
)->int: # images trained on
    return sum(steps() for _ in range(3))

def table(
    data, # FERData
    folder:Path, # of `write_files`
    augment:bool, # with or without transforms
    rounds:int, # turns of each
)->Table:
    loaders = {'ours, from memory': our_loader(data, augment)}
    for workers in (0, 2): loaders[f'fastai `ImageBlock`, {workers} workers'] = fastai_loader(folder, augment, workers)
    for workers in (0, 2): loaders[f'torchvision `ImageFolder` + v2 + `DataLoader`, {workers} workers'] = torchvision_loader(folder, augment, workers)
    for loader in loaders.values(): next(iter(loader))
    competitors = {name: partial(epoch, loader) for name,loader in loaders.items()}
    if augment:
        step = Steps(resnet18_learner(data))
        step()
        competitors['training timm\'s ResNet-18, fast precision'] = partial(training, step)
    times = compare(competitors, rounds)
    ours,*others = times
    faster = {name: ratio(times[name], times[ours]) for name in times}
    rows = [(name, spread([1/t for t in times[name]]), faster[name]) for name in times]
    wanted = (20, 10, None, None, 5) if augment else ()
    goals = [Goal(f'loader with augmentation / {name}', faster[name], at_least=low) for name,low in zip(others, wanted) if low]
    title = 'Loader with augmentation and erasing' if augment else 'Loader without transforms'
    return Table(title, ('what', 'images/s', 'ours is faster by'), rows, goals=goals)

def tables(
    settings, # `Settings`
)->list: # of `Table`
    "With and without augmentation"
    data = settings.faces(*settings.pick((4000, 500), (300, 40)))
    with TemporaryDirectory() as folder:
        write_files(data, Path(folder))
        results = [table(data, Path(folder), augment, settings.pick(3, 1)) for augment in (True, False)]
    results[-1].note = (f'{int((data.usage==0).sum()):,} {"real" if settings.data else "toy"} faces, batches of 128; the others read JPEG files '
        "that are in the page cache. fastai starts its workers anew in every epoch, torch's `DataLoader` keeps them.")
    return results
