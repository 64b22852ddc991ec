"Faces in photos: drawn scenes, sizes and turns, and pictures without a face"
import importlib
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.image import AxesImage
from PIL import Image

from fer_perturb.data import EMOTIONS
from fer_perturb.landmarks import MEAN_FACE
from fer_perturb.photos import Sighting, align_faces, cut_out, distinct_faces, face_frames, find_faces, show_answers, toy_scene
from fer_perturb.toyfaces import draw_faces


def test_a_cut_keeps_a_region_turns_it_and_takes_the_mean():
    gray = np.random.default_rng(0).integers(0, 256, (60,80), dtype=np.uint8)
    assert (cut_out(gray, 1+0j, 10+5j, 20)==gray[5:25,10:30]).all()
    assert (cut_out(gray, 1j, 29+5j, 20)==np.rot90(gray[5:25,10:30])).all()
    means = gray[:40,:40].reshape(10, 4, 10, 4).mean((1, 3))
    assert np.abs(cut_out(gray, 4+0j, 1.5+1.5j, 10)-means).max()<=.5

@pytest.mark.parametrize('size', [24, 48, 96])
@pytest.mark.parametrize('turn', [0, 33, -150])
def test_crops_put_landmarks_where_fer2013_has_them(size, turn):
    scene = toy_scene(['neutral'], [130], [turn], seed=3)
    t,s = (z.item() for z in face_frames(scene.landmarks, size))
    points = torch.view_as_complex(scene.landmarks[0].double().contiguous())
    at = torch.view_as_real((points-s)/t)
    assert (at.mean(0)-((MEAN_FACE+.5)*size/48-.5).mean(0)).abs().max()<.06*size
    assert align_faces(scene.image, scene.landmarks, size).shape==(1,size,size)

def test_one_face_is_one_and_a_weak_find_is_none():
    finds = [Sighting(.2, 50+50j, 80, 0), Sighting(.1, 55+52j, 90, 30), Sighting(.25, 300+50j, 80, 0), Sighting(.4, 500+50j, 80, 0)]
    assert [s.centre for s in distinct_faces(finds)]==[500+50j, 50+50j]

@pytest.mark.parametrize('image', [np.uint8, np.float32, 'rgb', 'png', 'bytes'])
def test_a_small_square_is_a_face_in_any_form(image, tmp_path):
    toy = draw_faces(torch.tensor([3]), seed=1).images[0].numpy()
    Image.fromarray(toy).save(tmp_path/'toy.png')
    photo = {'rgb': np.stack([toy]*3, 2), 'png': tmp_path/'toy.png', 'bytes': (tmp_path/'toy.png').read_bytes()}.get(image)
    if photo is None: photo = toy if image is np.uint8 else toy/np.float32(255)
    faces = find_faces(photo)
    assert faces.whole and np.abs(faces.crops[0].numpy()-toy.astype(int)).max()<=1

def test_without_the_extra_a_photo_says_how_to_get_it(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *a: None if name in ('dlib', 'face_recognition_models') else find_spec(name, *a))
    with pytest.raises(ImportError, match=r"pip install 'fer_perturb\[masks\]'"): find_faces(np.zeros((200,300), np.uint8))
    assert len(find_faces(np.zeros((48,48), np.uint8)))==0

@pytest.mark.parametrize('sides,turns', [([70,130,240], [0,50,-100]), ([60,60,200], [180,90,20])])
def test_three_faces_of_any_size_and_turn(sides, turns):
    pytest.importorskip('dlib')
    scene = toy_scene(['happy', 'surprise', 'neutral'], sides, turns, seed=7)
    faces = find_faces(scene.image)
    assert len(faces)==3
    error = (faces.landmarks[:,17:].mean(1)-scene.landmarks[:,17:].mean(1)).norm(dim=-1)
    assert (error/torch.tensor(sides)).max()<.12
    lean = faces.turns.deg2rad()-face_frames(scene.landmarks)[0].angle()
    assert torch.atan2(lean.sin(), lean.cos()).abs().max()<math.radians(15)

@pytest.mark.parametrize('factor', [.6, 5])
def test_a_photo_may_be_small_or_large(factor):
    pytest.importorskip('dlib')
    scene = toy_scene(['happy', 'surprise'], [140,160], [0,-30], seed=7)
    h,w = scene.image.shape
    photo = Image.fromarray(scene.image).resize((round(w*factor), round(h*factor)))
    faces = find_faces(photo.convert('RGB'))
    assert len(faces)==2 and faces.photo==photo.size
    assert ((faces.landmarks.mean(1)/factor-scene.landmarks.mean(1)).norm(dim=-1)<.12*140).all()

def test_a_face_that_fills_the_photo_and_photos_without_one():
    pytest.importorskip('dlib')
    assert len(find_faces(draw_faces(torch.tensor([6]), seed=1, size=300).images[0].numpy()))==1
    grain = np.random.default_rng(0).integers(0, 256, (300,400), dtype=np.uint8)
    for photo in (grain, toy_scene(['sad'], [200], [0]).image[:,:60]):
        faces = find_faces(photo)
        assert len(faces)==0 and faces.crops.shape==(0,48,48) and 'no face' in repr(faces)

@pytest.mark.parametrize('mode', ['I;16', 'I', 'F'])
def test_a_photo_of_more_than_eight_bits_is_drawn_as_it_is_seen(mode, tmp_path):
    toy = draw_faces(torch.tensor([3]), seed=1).images[0].numpy()
    photo = Image.fromarray({'I;16': toy.astype(np.uint16)*257, 'I': toy.astype(np.int32)*257, 'F': toy.astype(np.float32)/255}[mode])
    assert photo.mode==mode
    figure = show_answers(photo, find_faces(photo), torch.eye(7)[3:4], EMOTIONS)
    shown = figure.findobj(AxesImage)[0].get_array()
    assert np.abs(np.asarray(shown)[...,0].astype(int)-toy).max()<=1
    plt.close(figure)

def test_a_photo_whose_pixels_mean_nothing_is_named(tmp_path):
    Image.new('LAB', (60,40)).save(tmp_path/'odd.tif')
    with pytest.raises(ValueError, match='odd.tif: colour mode LAB'): find_faces(tmp_path/'odd.tif')
