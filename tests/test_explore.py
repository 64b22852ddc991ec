"The explorer without a browser: files that nobody vouches for, changes that overtake each other, answers in time"
import asyncio
import io
import os
import statistics
import time
import warnings

import pytest
import torch
from PIL import Image, PngImagePlugin

from fer_perturb import explore as module
from fer_perturb.data import FERData
from fer_perturb.evaluate import predict_faces
from fer_perturb.explore import (Explorer, Latest, Look, Page, bars_html, crop_face, explore, max_bytes, open_picture, page_of, pictures_html, png,
                                 serve, toy_network)
from fer_perturb.learner import attention_learner, face_learner, perturb_learner
from fer_perturb.loaders import face_block
from fer_perturb.masks import OCCLUSIONS
from fer_perturb.toyfaces import draw_faces
from fer_perturb.weights import pretrained_learner
from helpers import quietly

stages = dict(stages=['0','1','2','3'])

@pytest.fixture(scope='module')
def models(faces):
    torch.manual_seed(0)
    dls = face_block().dataloaders(faces, bs=16)
    return {'baseline': quietly(face_learner(dls, toy_network()), 2, .01), 'P-model': quietly(perturb_learner(dls, toy_network(), **stages, saliency='energy'), 2)}

@pytest.fixture
def explorer(models, faces): return Explorer(models, faces.part('PublicTest'))

def encoded(image, kind='PNG', **kwargs):
    buffer = io.BytesIO()
    image.save(buffer, kind, **kwargs)
    return buffer.getvalue()

gray = Image.linear_gradient('L')

# files

@pytest.mark.parametrize('kind,mode', [(k, m) for k in ('PNG', 'JPEG', 'WEBP', 'BMP') for m in ('L', 'RGB')] + [
    ('PNG', 'RGBA'), ('PNG', 'LA'), ('PNG', 'P'), ('PNG', '1'), ('PNG', 'I;16'), ('JPEG', 'CMYK'), ('WEBP', 'RGBA')])
def test_pictures_of_every_kind_become_a_face(kind, mode):
    content = encoded(Image.new('I;16', (90, 70), 30000) if mode=='I;16' else gray.resize((90, 70)).convert(mode), kind)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        face,found = crop_face(open_picture(content))
    assert face.shape==(48,48) and face.dtype==torch.uint8 and type(face) is torch.Tensor and not found

def test_sixteen_bits_and_what_is_see_through_are_not_lost():
    deep = Image.frombytes('I;16', (64, 64), b''.join(int(257*v).to_bytes(2, 'little') for v in range(64) for _ in range(64)))
    face,_ = crop_face(open_picture(encoded(deep)))
    assert face[40:].float().mean()<100 and face[:8].float().mean()<15 # darker than an eighth of white, and rising
    assert face[44].float().mean()>face[4].float().mean()+20
    clear = Image.new('RGBA', (64, 64), (0, 0, 0, 0))
    assert crop_face(open_picture(encoded(clear)))[0].float().mean()>250 # see-through lies over white

def test_a_phone_held_upright():
    image = Image.new('L', (80, 40), 0)
    image.paste(255, (0, 0, 40, 40)) # white on the left
    exif = Image.Exif()
    exif[0x112] = 6 # to be turned clockwise: white on top
    turned = open_picture(encoded(image.convert('RGB'), 'JPEG', exif=exif, quality=95))
    assert turned.size==(40, 80) and turned.getpixel((20, 5))[0]>200 and turned.getpixel((20, 75))[0]<50

bomb = io.BytesIO()
gray.save(bomb, 'PNG', pnginfo=(lambda info: (info.add_text('a', 'x'*20_000_000, zip=True), info)[1])(PngImagePlugin.PngInfo()))
whole = encoded(gray.convert('RGB'), 'JPEG')
wrong = {'nothing': b'', 'a text': b'to whom it may concern', 'torn': whole[:len(whole)//2], 'a web page': b'<html><script>alert(1)</script></html>',
    'a drawing': b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', 'an archive': b'PK\x03\x04' + os.urandom(200),
    'a pickle': b'\x80\x04\x95' + os.urandom(99), 'postscript': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'noise': os.urandom(5000),
    'a head only': encoded(gray)[:40], 'a wrong checksum': encoded(gray)[:60] + b'\0'*20 + encoded(gray)[80:], 'a bomb of text': bomb.getvalue(),
    'an animation': encoded(gray, 'GIF'), 'a scan': encoded(gray, 'TIFF')}

@pytest.mark.parametrize('what', wrong)
def test_wrong_files_are_a_sentence(what, explorer):
    page,before = Page(explorer),explorer.shown
    with pytest.raises(ValueError, match='give a (JPEG|picture)'): open_picture(wrong[what], what)
    page.receive(wrong[what], what)
    assert 'not a picture' in page.message.value and 'Traceback' not in page.message.value and explorer.shown is before

@pytest.mark.parametrize('size', [(6000, 5000), (20_000_001, 1), (60_000, 60_000)])
def test_too_many_pixels_are_refused_before_they_are_unpacked(size, peak_memory):
    content = encoded(Image.new('1', (8, 8))) # a small file whose header is forged
    import struct, zlib
    head = b'IHDR' + struct.pack('>II', *size) + content[24:29]
    content = content[:12] + head + struct.pack('>I', zlib.crc32(head)) + content[33:]
    start = time.perf_counter()
    with pytest.raises(ValueError, match='million pixels'): open_picture(content)
    assert time.perf_counter()-start<.5

def test_too_many_bytes_are_not_looked_at(monkeypatch):
    monkeypatch.setattr(module.Image, 'open', lambda *a, **k: pytest.fail('opened'))
    with pytest.raises(ValueError, match='at most 8 MB'): open_picture(bytes(max_bytes+1))

def test_an_upload_is_not_written_to_disk(explorer, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    def refuse(event, args):
        if event=='open' and active and isinstance(args[1], str) and set(args[1]) & set('wax+'): opened.append(args[0])
    import sys
    opened,active = [],True
    sys.addaudithook(refuse)
    explorer.upload(encoded(gray))
    active = False
    assert not opened and not list(tmp_path.rglob('*.*'))

# what is done to a face

def test_answers_are_those_of_the_learner(explorer, faces):
    data = faces.part('PublicTest')
    for i in (0, 5):
        explorer.choose(i)
        for name,answer in explorer.answers(explorer.shown.image).items():
            assert torch.equal(answer[0].as_subclass(torch.Tensor), answer[1].as_subclass(torch.Tensor))
            torch.testing.assert_close(answer[0].as_subclass(torch.Tensor), predict_faces(explorer.models[name], data[i:i+1])[0].as_subclass(torch.Tensor))

@pytest.mark.parametrize('n', [1, 3, 6])
def test_regions(explorer, n):
    look = Look(n_clusters=n, keep=.25)
    regions = explorer.regions(look)
    assert list(regions)==['eyes', 'brows', 'nose', 'mouth', *(f'cluster {i}' for i in range(1, n+1))]
    clusters = torch.stack([m for k,m in regions.items() if k.startswith('cluster')])
    assert clusters.sum(0).max()==1 and clusters.any(0).sum()==round(.25*48*48)
    for name,mask in regions.items():
        changed = explorer.changed(Look(n_clusters=n, keep=.25, hidden=(name,)), regions)
        assert (changed[mask]==128).all() and torch.equal(changed[~mask], explorer.shown.image[~mask])

def test_sliders_change_the_clusters(explorer):
    first = explorer.clusters(Look())
    for other in (Look(spatial_weight=.1), Look(intensity_weight=3.), Look(keep=.6), Look(n_clusters=4)): assert not torch.equal(explorer.clusters(other), first)
    assert torch.equal(explorer.clusters(Look()), first)

@pytest.mark.parametrize('what', OCCLUSIONS)
def test_everything_that_can_be_worn(explorer, what):
    regions = explorer.regions(Look())
    assert not torch.equal(explorer.changed(Look(wear=what), regions), explorer.shown.image)

def test_a_face_without_landmarks(models, faces):
    bare = faces.with_columns(landmarks=None)[:20]
    explorer = Explorer(models, bare)
    assert explorer.shown.landmarks.shape==(68,2) and all(m.any() for m in explorer.regions(Look()).values())

def test_models_that_do_not_fit_together(models, faces):
    other = face_learner(face_block(tuple(reversed(faces.vocab))).dataloaders(faces.with_columns(vocab=tuple(reversed(faces.vocab))), bs=16), toy_network())
    with pytest.raises(ValueError, match='same classes'): Explorer(models | dict(other=other), faces)

# the page

def test_the_page_answers_every_control(explorer):
    page = Page(explorer)
    def shown(): return page.pictures.value,page.bars.value,page.maps.value
    for act in (lambda: page.buttons['eyes'].set_trait('value', True), lambda: page.wear.set_trait('value', 'n95'), lambda: page.sliders['keep'].set_trait('value', .5),
                lambda: page.kind.set_trait('value', 'gradient'), lambda: page.face.set_trait('value', 3), lambda: page.receive(whole, 'a.jpg')):
        before = shown()
        act()
        assert shown()!=before and 'Answered' in page.message.value, page.message.value
    assert page.face.value is None
    before = shown()
    page.face.value = 0
    assert shown()!=before and explorer.shown.name=='face 0'

def test_a_button_for_each_cluster(explorer):
    page = Page(explorer)
    def there(): return [i for i in range(1, 7) if page.buttons[f'cluster {i}'].layout.display is None]
    assert there()==[1, 2, 3]
    page.sliders['n_clusters'].value = 5
    page.buttons['cluster 5'].value = True
    assert there()==[1, 2, 3, 4, 5] and page.look().hidden==('cluster 5',)
    page.sliders['n_clusters'].value = 2
    assert there()==[1, 2] and page.look().hidden==()

def test_what_nobody_foresaw_is_a_sentence_too(explorer, monkeypatch):
    page = Page(explorer)
    monkeypatch.setattr(explorer, 'answers', lambda changed: 1/0)
    page.buttons['eyes'].value = True
    assert 'did not work (ZeroDivisionError)' in page.message.value
    monkeypatch.undo()
    page.buttons['eyes'].value = False
    assert 'Answered' in page.message.value

def test_camera(explorer):
    pytest.importorskip('anywidget')
    page = Page(explorer)
    before = page.pictures.value
    page.camera.picture = encoded(gray.resize((90, 70)), 'JPEG')
    assert page.pictures.value!=before and page.face.value is None and 'the picture' in page.pictures.value
    page.camera.picture = b'no picture'
    assert 'not a picture' in page.message.value

def test_names_are_text():
    evil = '<img src=x onerror=alert(1)>"'
    for html in (pictures_html([(evil, b'')]), bars_html([evil], torch.rand(2, 1), evil)): assert evil not in html and '<img src=x' not in html

def test_a_page_from_files(models, tmp_path):
    models['baseline'].export(tmp_path/'one.pkl')
    models['P-model'].export(tmp_path/'two.pkl')
    assert list(page_of([tmp_path/'one.pkl', tmp_path/'two.pkl']).explorer.models)==['one', 'two']
    (tmp_path/'bad.pkl').write_bytes(b'no model')
    for call in (lambda: page_of([tmp_path/'bad.pkl']), lambda: serve(tmp_path/'bad.pkl', browser=False) if _voila() else page_of([tmp_path/'bad.pkl'])):
        with pytest.raises(ValueError, match='no model that can be loaded'): call()
    with pytest.raises(FileNotFoundError, match='learn.export'): page_of([tmp_path/'none.pkl'])

def _voila():
    import importlib.util
    return importlib.util.find_spec('voila')

def test_without_voila_a_sentence(monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, 'voila.app', None)
    with pytest.raises(ImportError, match='explore'): serve(browser=False)

# changes that overtake each other

def test_the_newest_change_wins(explorer):
    async def drag():
        page = Page(explorer)
        await page.latest.task
        counted,steps = [],page.latest.work
        def count():
            counted.append(page.sliders['keep'].value)
            yield from steps()
        page.latest.work = count
        for i in range(1, 19):
            page.sliders['keep'].value = round(.05*i, 2)
            await asyncio.sleep(0)
        await page.latest.task
        return counted,page
    counted,page = asyncio.run(drag())
    assert counted==[.9] # eighteen changes, one answer
    assert page.latest.asked==page.latest.answered

def test_a_newer_change_breaks_the_older_answer_off():
    log = []
    async def run():
        def work():
            log.append('start')
            yield
            if len(log)==1: latest()
            yield
            log.append('end')
        latest = Latest(work, 0)
        latest()
        await latest.task
    asyncio.run(run())
    assert log==['start', 'start', 'end']

def test_an_answer_in_time(explorer):
    "100 changes, each answered before the next; the limit is ten times what two free cores take"
    async def changes():
        page = Page(explorer)
        await page.latest.task
        took,controls = [],[*page.buttons.values()][:7]
        for i in range(100):
            start = time.perf_counter()
            if i%3==0: page.sliders['keep'].value = .1 + .05*(i%10)
            elif i%3==1: controls[i%7].value = not controls[i%7].value
            else: page.wear.value = [*OCCLUSIONS][i%len(OCCLUSIONS)]
            await page.latest.task
            took.append(1000*(time.perf_counter()-start))
        return took
    took = asyncio.run(changes())
    print(f'{statistics.median(took):.0f} ms, at worst {max(took):.0f} ms')
    assert statistics.median(took)<1500

def test_models_of_another_face_size_get_faces_of_that_size(tmp_path):
    drawn = draw_faces(torch.arange(70)%7, seed=2, size=64)
    learn = face_learner(face_block(size=64).dataloaders(FERData(drawn.images, torch.arange(70)%7, torch.arange(70)%3), bs=8), 'test_resnet')
    learn.export(tmp_path/'large.pkl')
    page = page_of([tmp_path/'large.pkl'])
    assert page.explorer.shown.image.shape==(64, 64) and page.explorer.faces.column('landmarks').max()>50
    pretrained_learner().export(tmp_path/'small.pkl')
    with pytest.raises(ValueError, match='faces of 48 and 64 pixels'): page_of([tmp_path/'large.pkl', tmp_path/'small.pkl'])
