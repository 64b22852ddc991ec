"A film of a training changes nothing, and shows what was there"
import pytest
import torch
from fastai.vision.all import set_seed
from matplotlib import pyplot as plt
from matplotlib.animation import PillowWriter
from PIL import Image

from fer_perturb.explore import toy_network
from fer_perturb.film import ClusterFilm, animate, centroid_paths, film_sheet, kmeans_sheet
from fer_perturb.learner import face_learner, perturb_learner
from helpers import quietly


def trained(few, *cbs):
    set_seed(3)
    learn = perturb_learner(few, toy_network(), stages=['0','1','2','3'], saliency='energy', cbs=list(cbs))
    return quietly(learn, 3)

@pytest.fixture
def film(few, faces):
    film = ClusterFilm(faces.images[:2])
    trained(few, film)
    return film

def test_a_film_changes_nothing(few, faces):
    film = ClusterFilm(faces.images[:2])
    a,b = trained(few),trained(few, film)
    assert all(torch.equal(x, y) for x,y in zip(a.model.state_dict().values(), b.model.state_dict().values()))
    assert [f.epoch for f in film.frames]==[0, 1, 2]
    assert torch.equal(film.frames[-1].centroids, b.recluster.clusterer.centroids)
    assert film.frames[0].clusters.shape==(2,48,48) and 0<(film.frames[0].clusters>0).float().mean()<.4
    b.get_preds()
    assert len(film.frames)==3 # predictions are no epoch
    quietly(b, 1)
    assert len(film.frames)==1 # the next training is a film of its own

def test_pictures_of_a_film(film, tmp_path):
    assert len(film_sheet(film).axes)==6 and len(film_sheet(film, 2).axes)==4
    assert film_sheet(film, 2).axes[1].get_title()=='epoch 2' # first and last
    assert len(centroid_paths(film).axes[0].lines)==2*3
    animation = animate(film)
    animation.save(tmp_path/'film.gif', writer=PillowWriter(fps=2))
    with Image.open(tmp_path/'film.gif') as gif: assert gif.n_frames==3
    plt.close('all')

def test_what_cannot_be_filmed(few, faces):
    for show in (film_sheet, centroid_paths, animate):
        with pytest.raises(ValueError, match='film is empty'): show(ClusterFilm(faces.images[:2]))
    with pytest.raises(ValueError, match='does not cluster'): quietly(face_learner(few, toy_network(), cbs=[ClusterFilm(faces.images[:2])]))

def test_steps_of_kmeans(faces):
    figure = kmeans_sheet(faces.images[0], torch.rand(48, 48), steps=3)
    inertia = [float(ax.get_title().split(': ')[1]) for ax in figure.axes]
    assert len(inertia)==4 and inertia==sorted(inertia, reverse=True) and inertia[0]>inertia[-1]
    plt.close('all')
