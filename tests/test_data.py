"Every form in which faces come in, what is wrong with them, and how they leave in batches"
import csv
import io
import warnings
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.vision.all import AffineCoordTfm, CrossEntropyLossFlat, Learner, aug_transforms, load_learner, setup_aug_tfms
from PIL import Image
from torch import nn

from fer_perturb.augment import EraseRandom, FaceAugment, erase_rectangles, random_affine, warp
from fer_perturb.data import EMOTIONS, USAGES, FERData
from fer_perturb.loaders import TensorFace, face_block
from fer_perturb.readers import cache_folder, download_fer2013, load_faces, save_faces


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'PNG')
    return file.getvalue()

def kaggle_files(faces):
    for face,usage in zip(faces, faces.usage):
        yield f'{"train" if usage==0 else "test"}/{face.label}/{USAGES[usage]}_{face.name}.png', png(face.image.numpy())

def write_zip(path, files):
    with zipfile.ZipFile(path, 'w') as z:
        for name,content in files: z.writestr(name, content)
    return path

def write_folder(path, files):
    for name,content in files:
        (path/name).parent.mkdir(parents=True, exist_ok=True)
        (path/name).write_bytes(content)
    return path

def csv_row(face, usage): return {'emotion': EMOTIONS.index(face.label), 'pixels': ' '.join(map(str, face.image.flatten().tolist())), 'Usage': USAGES[usage]}

def write_csv(path, rows, header=('emotion', 'pixels', 'Usage'), blank=''):
    with open(path, 'w', newline='') as f:
        writer = csv.writer(f)
        writer.writerow([h if h=='emotion' else blank+h for h in header])
        writer.writerows([row[h] for h in header] for row in rows)
    return path

def same_faces(a, b):
    "The same images with the same labels and usage, in any order"
    key = lambda data: sorted((i.numpy().tobytes(), l, u) for i,l,u in zip(data.images, data.labels.tolist(), data.usage.tolist()))
    return key(a)==key(b)


def test_every_form_gives_the_same_faces(faces, tmp_path):
    rows = [csv_row(f, u) for f,u in zip(faces, faces.usage)]
    for path in (write_zip(tmp_path/'fer.zip', kaggle_files(faces)), write_folder(tmp_path/'fer', kaggle_files(faces)),
                 write_csv(tmp_path/'fer2013.csv', rows), write_csv(tmp_path/'icml.csv', rows, ('emotion', 'Usage', 'pixels'), blank=' ')):
        data = load_faces(path)
        assert same_faces(data, faces), path.name
        assert data.vocab==EMOTIONS

def test_labels_follow_the_csv_order_not_the_folders(faces, tmp_path):
    data = load_faces(write_zip(tmp_path/'fer.zip', kaggle_files(faces)))
    for face in data: assert face.name.split('/')[1]==face.label
    assert {EMOTIONS.index(c) for c in ('sad', 'surprise', 'neutral')}=={4, 5, 6}

def test_both_parts_are_needed(faces):
    for usage,missing in (('Training', 'PublicTest'), ('PublicTest', 'Training')):
        with pytest.raises(ValueError, match=f'is marked {missing}'): face_block(faces.vocab).dataloaders(faces.part(usage))

def test_a_users_own_classes_are_split_and_said_so(faces, tmp_path):
    files = [(f'{"dog" if i%2 else "cat"}/{i}.png', png(f.image.numpy())) for i,f in enumerate(faces[:100])]
    with pytest.warns(UserWarning, match='a tenth of each class'): data = load_faces(write_folder(tmp_path/'pets', files))
    assert data.vocab==('cat', 'dog')
    assert [len(data.part(u)) for u in USAGES]==[80, 10, 10]

def test_size_and_colour_are_converted_and_said_so(faces, tmp_path):
    big = np.repeat(np.repeat(np.stack([f.image.numpy() for f in faces[:40]])[..., None], 3, -1), 2, 1)
    files = [(f'{"ab"[i%2]}/{i}.png', png(image)) for i,image in enumerate(big)]
    with pytest.warns(UserWarning, match='colour mode RGB to gray, 48×96 to 48×48 pixels'): data = load_faces(write_folder(tmp_path/'big', files))
    assert data.images.shape==(40, 48, 48)

def test_cache_is_used_and_renewed(faces, tmp_path, monkeypatch):
    path = write_zip(tmp_path/'fer.zip', kaggle_files(faces))
    first = load_faces(path)
    monkeypatch.setattr('fer_perturb.readers.from_zip', None)
    assert same_faces(load_faces(path), first)
    monkeypatch.undo()
    monkeypatch.setenv('FER_PERTURB_CACHE', str(tmp_path/'cache'))
    write_zip(path, list(kaggle_files(faces))[:300])
    assert len(load_faces(path))==300

def test_a_broken_cache_is_read_anew(faces, tmp_path):
    path = write_zip(tmp_path/'fer.zip', kaggle_files(faces))
    load_faces(path)
    kept, = cache_folder().iterdir()
    kept.write_bytes(kept.read_bytes()[:1000])
    assert same_faces(load_faces(path), faces)

def test_saving_leaves_nothing_half_written(faces, tmp_path, monkeypatch):
    target = tmp_path/'faces.npz'
    target.write_text('precious')
    def stop(*args, **kwargs): raise KeyboardInterrupt
    monkeypatch.setattr(np, 'savez', stop)
    with pytest.raises(KeyboardInterrupt): save_faces(faces, target)
    assert target.read_text()=='precious'
    assert list(tmp_path.glob('*.part'))==[]

def test_saved_faces_come_back(faces, tmp_path):
    save_faces(faces, tmp_path/'faces.npz')
    back = load_faces(tmp_path/'faces.npz')
    assert torch.equal(back.images, faces.images) and torch.equal(back.regions, faces.regions)


bad_csv = {'no column pixels': dict(header=('emotion', 'Usage')),
           '2303 pixels instead of 2304': dict(pixels=' '.join(['1']*2303)),
           'label 7': dict(emotion=7),
           'pixel of 256': dict(pixels=' '.join(['256']*2304)),
           'not a whole number': dict(pixels=' '.join(['x']*2304)),
           'Usage .Test.': dict(Usage='Test')}

@pytest.mark.parametrize('message', bad_csv)
def test_bad_csv(message, faces, tmp_path):
    change = dict(bad_csv[message])
    header = change.pop('header', ('emotion', 'pixels', 'Usage'))
    rows = [csv_row(f, u) for f,u in zip(faces, faces.usage)]
    rows[5] |= change
    with pytest.raises(ValueError, match=message): load_faces(write_csv(tmp_path/'bad.csv', rows, header))

def test_bad_files(faces, tmp_path):
    files = list(kaggle_files(faces))
    with pytest.raises(FileNotFoundError, match='nothing at'): load_faces(tmp_path/'nowhere.zip')
    with pytest.raises(ValueError, match='has no images'): load_faces(write_zip(tmp_path/'a.zip', [('readme.txt', 'hello')]))
    (tmp_path/'b.zip').write_bytes((tmp_path/'a.zip').read_bytes()[:20])
    with pytest.raises(ValueError, match='not a whole zip'): load_faces(tmp_path/'b.zip')
    with pytest.raises(ValueError, match=files[3][0]): load_faces(write_zip(tmp_path/'c.zip', [(n, c[:200] if i==3 else c) for i,(n,c) in enumerate(files)]))
    with pytest.raises(ValueError, match='one class only'): load_faces(write_zip(tmp_path/'d.zip', [(n, c) for n,c in files if '/sad/' in n]))
    with pytest.raises(ValueError, match='no training image of sad'): load_faces(write_zip(tmp_path/'e.zip', [(n, c) for n,c in files if 'train/sad/' not in n]))
    folder = write_folder(tmp_path/'f', files)
    (folder/'train'/'bored').mkdir()
    with pytest.raises(ValueError, match='no image of bored'): load_faces(folder)
    (tmp_path/'g.txt').write_text('?')
    with pytest.raises(ValueError, match='no zip file, folder or csv'): load_faces(tmp_path/'g.txt')

def test_download_without_network_says_what_to_do(monkeypatch):
    import sys
    import types
    fake = types.ModuleType('kagglehub')
    def refuse(handle): raise OSError('no route to host')
    fake.dataset_download = refuse
    monkeypatch.setitem(sys.modules, 'kagglehub', fake)
    with pytest.raises(ConnectionError, match='download the zip'): download_fer2013()
    monkeypatch.setitem(sys.modules, 'kagglehub', None)
    with pytest.raises(ImportError, match='pip install'): download_fer2013()


def small_net(): return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(36, 7))

def test_batches_equal_items(faces):
    "The fast path gives what fastai's own item-by-item path gives"
    dls = face_block(clusters=True).dataloaders(faces, bs=16)
    for fast,slow in zip(dls.valid, super(type(dls.valid), dls.valid).__iter__()):
        for a,b in zip(fast, slow):
            assert type(a) is type(b) and a.dtype==b.dtype and torch.equal(a, b)

def test_an_epoch_sees_every_training_image_once(faces):
    dls = face_block().dataloaders(faces, bs=16)
    dl = dls.train.new(drop_last=False)
    seen = torch.cat([(x*255).round().byte()[:, 0] for x,_ in dl]).as_subclass(torch.Tensor)
    train = faces.part('Training')
    assert sorted(i.numpy().tobytes() for i in seen)==sorted(i.numpy().tobytes() for i in train.images)
    orders = [torch.cat([y for _,y in dls.train]).tolist() for _ in range(2)]
    assert orders[0]!=orders[1]
    assert len(orders[0])==len(train)//16*16

def test_validation_is_public_test_in_order_without_augmentation(faces):
    dls = face_block(batch_tfms=[FaceAugment(), EraseRandom(p=1.)]).dataloaders(faces, bs=16)
    images = torch.cat([x for x,_ in dls.valid]).as_subclass(torch.Tensor)
    assert torch.allclose(images[:, 0], faces.part('PublicTest').images/255)

def test_predict_test_dl_and_export(faces, tmp_path):
    dls = face_block(batch_tfms=FaceAugment()).dataloaders(faces, bs=16)
    learn = Learner(dls, small_net(), loss_func=CrossEntropyLossFlat(), path=tmp_path)
    test = faces.part('PrivateTest')
    probabilities,labels = learn.get_preds(dl=dls.test_dl(test, with_labels=True))
    assert torch.equal(labels.as_subclass(torch.Tensor), test.labels)
    Image.fromarray(test[3].image.numpy()).save(tmp_path/'photo.png')
    for item in (tmp_path/'photo.png', str(tmp_path/'photo.png'), test[3], test[3].image.numpy(), Image.open(tmp_path/'photo.png')):
        emotion,_,p = learn.predict(item)
        assert torch.allclose(p, probabilities[3], atol=1e-5)
        assert emotion==EMOTIONS[p.argmax()]
    learn.export('learn.pkl')
    assert (tmp_path/'learn.pkl').stat().st_size<faces.images.nelement()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert torch.allclose(load_learner(tmp_path/'learn.pkl').predict(tmp_path/'photo.png')[2], probabilities[3], atol=1e-5)

def test_show_batch(faces):
    import matplotlib.pyplot as plt
    face_block().dataloaders(faces, bs=16).show_batch(max_n=4)
    assert len([a for a in plt.gcf().axes if a.images])==4
    assert plt.gcf().axes[0].images[0].get_cmap().name=='gray'
    plt.close('all')

def test_tables_share_images(faces):
    part = faces.part('Training')[10:20]
    assert part.columns is faces.columns
    assert torch.equal(part.images, faces.images[faces.usage==0][10:20])

def test_flip_and_shift_move_pixels_where_they_should():
    image = torch.zeros(64, 1, 48, 48)
    image[:, :, 10, 4] = 1.
    augment = FaceAugment(max_rotate=0, max_zoom=1., max_shift=0., max_lighting=0.)
    columns = set(augment(TensorFace(image), split_idx=0).flatten(1).argmax(1).tolist())
    assert columns=={10*48+4, 10*48+43}
    assert torch.equal(augment(TensorFace(image), split_idx=1), image)

@pytest.mark.parametrize('mode, padding_mode', [('bilinear', 'reflection'), ('nearest', 'zeros')])
def test_what_comes_in_from_outside(faces, mode, padding_mode):
    images = faces.images[:100, None, :40]/255
    matrices = random_affine(len(images), 'cpu', max_rotate=60., max_shift=.6)
    expected = F.grid_sample(images, F.affine_grid(matrices, images.shape, align_corners=False), mode=mode, padding_mode=padding_mode, align_corners=False)
    moved = warp(images, matrices, mode=mode, padding_mode=padding_mode)
    assert ((moved-expected).abs()>1e-4).float().mean()<1e-4 # nearest: a place halfway between two pixels may go to either

def test_same_statistics_as_fastai(faces):
    "Mean and spread of 4,000 augmentations of one face, pixel by pixel; shifts are ours alone"
    face = TensorFace(faces.images[3].expand(4000, 1, 48, 48)/255)
    ours = FaceAugment(max_shift=0.)(face.clone(), split_idx=0)
    theirs = face.clone()
    for tfm in setup_aug_tfms(aug_transforms(max_rotate=10., max_zoom=1.1, max_warp=0, max_lighting=.2, p_affine=.75, p_lighting=.75)):
        if isinstance(tfm, AffineCoordTfm):
            for draw in tfm.aff_fs:
                if getattr(draw, 'func', draw).__name__=='zoom_mat': draw.keywords.update(draw_x=.5, draw_y=.5)
        theirs = tfm(theirs, split_idx=0)
    ours,theirs = ours.as_subclass(torch.Tensor),theirs.as_subclass(torch.Tensor)
    assert (ours.mean(0)-theirs.mean(0)).abs().max()<.02
    assert (ours.std(0)-theirs.std(0)).abs().max()<.02
    light = [x.mean((1, 2, 3)) for x in (ours, theirs)]
    assert torch.allclose(*(torch.quantile(x, torch.linspace(.05, .95, 10)) for x in light), atol=.01)

def test_erased_area_is_as_asked():
    torch.manual_seed(0)
    image = torch.full((2000, 1, 48, 48), 2.)
    erased = (erase_rectangles(image, p=.5, min_area=.1, max_area=.2)!=2.).float().mean((1, 2, 3)).as_subclass(torch.Tensor)
    hit = erased>0
    assert abs(hit.float().mean()-.5)<.05
    assert .08<erased[hit].min() and erased[hit].max()<.22
    assert abs(erased[hit].mean()-.15)<.01
