"What pixels mean: each kind of image as `predict` and the table readers see it, exactly, or the sentence that refuses it"
import io
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import CrossEntropyLossFlat, Learner
from PIL import Image
from torch import nn

from fer_perturb.data import EMOTIONS, FERData
from fer_perturb.loaders import ToFace, face_block
from fer_perturb.readers import from_frame, load_faces, save_faces
from fer_perturb.toyfaces import toy_faces

FACE = toy_faces(70).images[3].numpy()
DARK = (FACE//64).astype(np.uint8) # an 8-bit picture whose brightest pixel is 3
COLOUR = np.stack([FACE, 255-FACE, FACE//2], 2)
LUMA = np.asarray(Image.fromarray(COLOUR).convert('L'))
ALPHA = np.repeat(np.linspace(0, 255, 48).astype(np.uint8)[None], 48, 0)
OVER_WHITE = (FACE*(ALPHA/255) + 255*(1-ALPHA/255)).round()

def pil(array, mode=None): return Image.fromarray(array) if mode is None else Image.fromarray(array).convert(mode)

def file_of(image, kind='PNG', **options):
    "The bytes of an image file"
    with io.BytesIO() as buffer:
        image.save(buffer, kind, **options)
        return buffer.getvalue()

def turned(orientation, kind='PNG'):
    "A file that a camera wrote, held so that EXIF says `orientation`; upright it is FACE"
    undo = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.T, 6: np.rot90,
            7: lambda a: np.rot90(a, 2).T, 8: lambda a: np.rot90(a, -1)}[orientation]
    exif = Image.Exif()
    exif[0x112] = orientation
    return file_of(pil(np.ascontiguousarray(undo(FACE))), kind, exif=exif)

def pgm(values, top): return f'P5 48 48 {top}\n'.encode() + values.astype('>u2' if top>255 else np.uint8).tobytes()

def palette(transparency=None):
    image = pil(FACE).convert('P')
    if transparency is not None: image.info['transparency'] = transparency
    return image

def striped(see_through=(0, 8)):
    "A gray picture, and one whose tRNS chunk makes one gray see-through"
    values = np.tile(np.arange(48, dtype=np.uint8)*5, (48, 1))
    return values,np.where(values==values[0, see_through[1]], 255, values)

def gif(): return file_of(pil(FACE), 'GIF', save_all=True, append_images=[pil(255-FACE)])

SAME = {
    # arrays of numbers
    'uint8': (FACE, FACE), 'int64': (FACE.astype(np.int64), FACE), 'int16': (FACE.astype(np.int16), FACE),
    'uint32': (FACE.astype(np.uint32), FACE), 'dark uint8': (DARK, DARK), 'dark int64': (DARK.astype(np.int64), DARK),
    '16 bit ×257': (FACE.astype(np.uint16)*257, FACE), '16 bit ×256': (FACE.astype(np.uint16)*256, FACE),
    '16 bit big-endian': ((FACE.astype(np.uint16)*257).astype('>u2'), FACE), '16 bit in int32': (FACE.astype(np.int32)*257, FACE),
    'float32 in [0,1]': ((FACE/255).astype(np.float32), FACE), 'float64 in [0,1]': (FACE/255, FACE),
    'float64 in [0,255]': (FACE.astype(float), FACE), 'a little over 1': ((FACE/255*1.0005).astype(np.float32), FACE),
    'black floats': (np.zeros((48, 48)), np.zeros((48, 48))), 'black 16 bit': (np.zeros((48, 48), np.uint16), np.zeros((48, 48))),
    'bool': (FACE>127, np.where(FACE>127, 255, 0)), 'nested list': (FACE.tolist(), FACE),
    '(1,h,w)': (FACE[None], FACE), '(h,w,1)': (FACE[..., None], FACE), '(1,1,h,w)': (FACE[None, None], FACE),
    '(h,w,3)': (COLOUR, LUMA), '(h,w,3) floats': (COLOUR/255, LUMA), '(h,w,3) 16 bit': (COLOUR.astype(np.uint16)*257, LUMA),
    '(h,w,4)': (np.dstack([FACE, FACE, FACE, ALPHA]), OVER_WHITE), '(h,w,2)': (np.dstack([FACE, ALPHA]), OVER_WHITE),
    'not contiguous': (np.ascontiguousarray(FACE.T).T, FACE), 'every second pixel': (np.repeat(np.repeat(FACE, 2, 0), 2, 1)[::2, ::2], FACE),
    # tensors
    'tensor uint8': (torch.from_numpy(FACE), FACE), 'tensor in [0,1]': (torch.from_numpy(FACE)[None]/255, FACE),
    'tensor in [0,255]': (torch.from_numpy(FACE).float(), FACE), 'tensor int64': (torch.from_numpy(FACE).long(), FACE),
    'tensor float64': (torch.from_numpy(FACE).double()/255, FACE), 'tensor with a gradient': ((torch.from_numpy(FACE)/255).requires_grad_(), FACE),
    # PIL images
    'L': (pil(FACE), FACE), '1': (pil(FACE>127), np.where(FACE>127, 255, 0)), 'I;16': (pil(FACE.astype(np.uint16)*257), FACE),
    'I': (pil(FACE.astype(np.int32)*257), FACE), 'F in [0,1]': (pil((FACE/255).astype(np.float32)), FACE),
    'F in [0,255]': (pil(FACE.astype(np.float32)), FACE), 'RGB': (pil(COLOUR), LUMA), 'RGBA': (pil(np.dstack([COLOUR, np.full_like(FACE, 255)])), LUMA),
    'RGBA, half see-through': (pil(np.dstack([FACE, FACE, FACE, ALPHA])), OVER_WHITE), 'LA': (Image.merge('LA', (pil(FACE), pil(ALPHA))), OVER_WHITE),
    'P': (palette(), np.asarray(palette().convert('L'))), 'HSV': (pil(np.dstack([FACE]*3)).convert('HSV'), FACE),
    # files, as bytes
    'png': (file_of(pil(FACE)), FACE), 'bmp': (file_of(pil(FACE), 'BMP'), FACE), 'webp': (file_of(pil(COLOUR), 'WEBP', lossless=True), LUMA),
    'png, 16 bit': (file_of(pil(FACE.astype(np.uint16)*257)), FACE), 'tif, 16 bit': (file_of(pil(FACE.astype(np.uint16)*257), 'TIFF'), FACE),
    'tif, floats': (file_of(pil((FACE/255).astype(np.float32)), 'TIFF'), FACE), 'tif, int32': (file_of(pil(FACE.astype(np.int32)*257), 'TIFF'), FACE),
    'png, RGBA': (file_of(pil(np.dstack([FACE, FACE, FACE, ALPHA]))), OVER_WHITE), 'png, LA': (file_of(Image.merge('LA', (pil(FACE), pil(ALPHA)))), OVER_WHITE),
    'png, one gray see-through': (file_of(pil(striped()[0]), transparency=int(striped()[0][0, 8])), striped()[1]),
    'gif, two frames': (gif(), FACE), 'pgm': (pgm(FACE, 255), FACE), 'pgm, 16 bit': (pgm(FACE.astype(np.uint16)*257, 65535), FACE),
    'pgm, 12 bit that says so': (pgm(FACE.astype(np.uint16)*16, 4080), FACE),
    **{f'png, EXIF {i}': (turned(i), FACE) for i in range(1, 9)}, 'tif, EXIF 6': (turned(6, 'TIFF'), FACE), 'webp, EXIF 3': (file_of(pil(np.dstack([np.rot90(FACE, 2)]*3)), 'WEBP', lossless=True, exif=b'Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x03\0\0\0\0\0\0\0'), FACE)}

REFUSED = {
    '(3,h,w)': (COLOUR.transpose(2, 0, 1), 'colour comes last'), 'tensor (3,h,w)': (torch.rand(3, 48, 48), 'colour comes last'),
    '(4,h,w)': (np.stack([FACE]*4), 'colour comes last'), 'a batch': (np.stack([FACE]*7), 'is no image'), 'a batch (b,1,h,w)': (torch.rand(2, 1, 48, 48), 'is no image'),
    'a flat list': (FACE.flatten(), 'is no image'), 'nothing': (np.zeros((0, 48)), 'is no image'), 'a number': (np.array(3), 'is no image'),
    'five channels': (np.dstack([FACE]*5), 'is no image'),
    'negative': (FACE.astype(int)-128, 'negative'), 'negative floats': (FACE/127.5-1, 'negative'), 'a normalized tensor': (torch.from_numpy(FACE)[None]/127.5-1, 'negative'),
    'NaN': (np.where(FACE>200, np.nan, FACE/255), 'NaN or infinite'), 'infinite': (np.where(FACE>200, np.inf, FACE/255), 'NaN or infinite'),
    'NaN in a tensor': (torch.full((48, 48), float('nan')), 'NaN or infinite'), 'a PIL image with NaN': (pil(np.full((48, 48), np.nan, np.float32)), 'NaN or infinite'),
    '12 bit': (FACE.astype(np.uint16)*16, '12 bits end at 4095'), '10 bit in int32': (FACE.astype(np.int32)*4, '12 bits end at 4095'),
    '12 bit, PIL': (pil(FACE.astype(np.uint16)*16), '12 bits end at 4095'), '12 bit, png': (file_of(pil(FACE.astype(np.uint16)*16)), '12 bits end at 4095'),
    '8 bit in uint16': (FACE.astype(np.uint16), 'go up to'), 'float up to 3': (FACE/85, 'go up to'), 'float up to 65535': (FACE*257., 'go up to'),
    'over 16 bit': (FACE.astype(np.int64)*70000, 'go up to'), 'complex': (FACE.astype(complex), 'give numbers'), 'words': (np.full((48, 48), 'a'), 'give numbers'),
    'ragged': ([[1, 2], [3]], 'no array'), 'LAB': (Image.new('LAB', (48, 48)), 'colour mode LAB')}

def quietly(make, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return make(*args, **kwargs)

def by_predict(item): return ToFace(48)(torch.from_numpy(item) if isinstance(item, np.ndarray) and item.dtype==object else item)[0].numpy()

def by_table(item):
    "The same item in every row of a table"
    cells = pd.Series([item]*6 if not isinstance(item, bytes) else [dict(bytes=item)]*6, dtype=object)
    data = from_frame(pd.DataFrame(dict(image=cells, label=['a', 'b']*3, split=['train']*2 + ['valid']*2 + ['test']*2)), 'image', 'label', 'split')
    assert (data.images==data.images[0]).all()
    return data.images[0].numpy()

PATHS = dict(predict=by_predict, table=by_table)

@pytest.mark.parametrize('path', PATHS)
@pytest.mark.parametrize('name', SAME)
def test_it_means(name, path):
    item,expected = SAME[name]
    if path=='predict' and isinstance(item, list): item = np.array(item)
    found = quietly(PATHS[path], item)
    assert found.dtype==np.uint8 and found.shape==(48, 48)
    assert np.abs(found.astype(int)-expected).max()<=(1 if 'see-through' in name or 'A' in name or name in ('(h,w,4)', '(h,w,2)', 'HSV') else 0)

@pytest.mark.parametrize('path', PATHS)
@pytest.mark.parametrize('name', REFUSED)
def test_it_is_refused(name, path):
    item,sentence = REFUSED[name]
    if path=='predict' and isinstance(item, list): pytest.skip('predict takes no lists')
    with pytest.raises(ValueError, match=sentence): quietly(PATHS[path], item)

def test_a_half_and_a_bfloat_tensor_are_near():
    for kind in (torch.float16, torch.bfloat16):
        found = by_predict((torch.from_numpy(FACE)/255).to(kind))
        assert np.abs(found.astype(int)-FACE).max()<=1

def blank(side): return FERData(np.zeros((70, side, side), np.uint8), np.arange(70)%7, np.arange(70)//7%3)

def wide(w, h):
    "A picture that is FACE in the middle, and white elsewhere"
    canvas = np.full((h, w), 255, np.uint8)
    canvas[(h-48)//2:(h-48)//2+48, (w-48)//2:(w-48)//2+48] = FACE
    return canvas

@pytest.mark.parametrize('w,h', [(48, 80), (80, 48), (49, 48), (48, 99)])
def test_what_is_not_square_is_cropped_at_the_centre_or_letterboxed(w, h):
    assert np.array_equal(quietly(by_predict, wide(w, h)), FACE) and np.array_equal(quietly(by_predict, pil(wide(w, h))), FACE)
    dls = face_block(size=max(w, h), fit='letterbox').dataloaders(blank(max(w, h)), bs=8)
    boxed = (quietly(dls.test_dl([wide(w, h)]).one_batch)[0]*255).round().byte()[0, 0].cpu().numpy()
    bars = boxed[:(h<w)*(w-h)//2, :] if h<w else boxed[:, :(h-w)//2]
    assert boxed.shape==(max(w, h),)*2 and (bars==0).all() and (boxed==255).sum()==(wide(w, h)==255).sum()

def test_a_portrait_keeps_its_proportions(tmp_path):
    "A circle stays a circle"
    y,x = np.mgrid[:120, :80]
    circle = np.where((y-60)**2 + (x-40)**2<30**2, 255, 0).astype(np.uint8)
    from fer_perturb.images import to_gray
    for fit in ('crop', 'letterbox'):
        found = quietly(to_gray, circle, fit=fit)>127
        assert abs(int(found.any(0).sum())-int(found.any(1).sum()))<=1

def test_the_choice_is_said_once(tmp_path):
    for i in range(12):
        path = tmp_path/'set'/['train', 'valid', 'test'][i%3]/'ab'[i//3%2]/f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        pil(wide(60+i, 80+2*i)).save(path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('default')
        load_faces(tmp_path/'set', cache=False)
    assert sum('not square' in str(w.message) for w in caught)==1

def test_a_dark_image_is_dark_among_others():
    "Alone, its floats would pass for a picture in [0,1]; among the others it is nearly black"
    cells = pd.Series([FACE.astype(float)]*5 + [np.full((48, 48), .9)], dtype=object)
    data = from_frame(pd.DataFrame(dict(image=cells, label=['a', 'b']*3, split=['train']*4 + ['valid', 'test'])), 'image', 'label', 'split')
    assert data.images[5].max()==1 and torch.equal(data.images[0], torch.from_numpy(FACE))

def small_net(n): return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(n, 7))

@pytest.fixture(scope='module')
def large():
    "Faces of 96×96"
    toys = toy_faces(140)
    return FERData(toys.images.repeat_interleave(2, 1).repeat_interleave(2, 2), toys.labels, toys.usage)

def test_a_learner_of_96_pixels_is_asked_with_96(large, tmp_path):
    learn = Learner(face_block().dataloaders(large, bs=16), small_net(144), CrossEntropyLossFlat())
    image = large.images[5].numpy()
    pil(image).save(tmp_path/'a.png')
    with learn.no_bar():
        expected = learn.get_preds(dl=learn.dls.test_dl(large[5:6]))[0][0]
        for item in (image, image/255, pil(image), tmp_path/'a.png', large[5], torch.from_numpy(image)):
            assert torch.allclose(quietly(learn.predict, item)[2], expected, atol=1e-5)
        assert quietly(learn.predict, FACE)[2].shape==(7,) # a small photo is enlarged
    with pytest.raises(ValueError, match='read the faces with size=96'): learn.dls.test_dl(toy_faces(70)).one_batch()
    with pytest.raises(ValueError, match='read the faces with size=48'): face_block(EMOTIONS, 48).dataloaders(large)

def test_one_block_serves_faces_of_two_sizes(large):
    block = face_block()
    both = block.dataloaders(large, bs=16),block.dataloaders(toy_faces(70), bs=16)
    assert [quietly(dls.test_dl([FACE]).one_batch)[0].shape[-1] for dls in both]==[96, 48]

def test_a_kept_set_keeps_its_size(large, tmp_path):
    save_faces(large, tmp_path/'large.npz')
    assert load_faces(tmp_path/'large.npz').images.shape[1:]==(96, 96)==load_faces(tmp_path/'large.npz', size=96).images.shape[1:]
    with pytest.raises(ValueError, match='96×96 pixels, asked for is 48'): load_faces(tmp_path/'large.npz', size=48)

@pytest.mark.parametrize('tear', [lambda b: b[:len(b)//2], lambda b: b[:20], lambda b: b'', lambda b: b[:60] + bytes(len(b)-60), lambda b: b'GIF89a' + b, lambda b: b'<svg/>'])
@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'PPM'])
def test_a_torn_file_is_named(kind, tear, tmp_path):
    path = tmp_path/'torn.img'
    path.write_bytes(tear(file_of(pil(FACE), kind)))
    try: quietly(by_predict, path)
    except ValueError as e: assert 'torn.img' in str(e)

def test_a_torn_exif_block_says_nothing():
    data = bytearray(turned(6, 'JPEG'))
    at = data.index(b'Exif')+6
    data[at:at+20] = b'\xff'*20
    assert quietly(by_predict, bytes(data)).shape==(48, 48)

@pytest.mark.parametrize('options, sentence', [(dict(size=0), 'size is 0'), (dict(size=-3), 'size is -3'), (dict(size=48, fit='squeeze'), 'choose one of crop, letterbox')])
def test_options_of_a_face(options, sentence):
    from fer_perturb.images import to_gray
    with pytest.raises(ValueError, match=sentence): to_gray(FACE, **options)
