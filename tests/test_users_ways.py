"What fastai's users do beside the table of habits: other loaders, other precision, callbacks that stay, parts that change"
import pytest
import timm
import torch
from fastai.callback.all import MixedPrecision, MixUp
from fastai.vision.all import (Callback, CategoryBlock, CrossEntropyLossFlat, DataBlock, FocalLossFlat, ImageBlock, LabelSmoothingCrossEntropy, Normalize,
                               Path, PILImageBW, Resize)
from PIL import Image
from torch import nn

from fer_perturb.checkpoint import Checkpoint
from fer_perturb.ensemble import SoftVote, ensemble_learner
from fer_perturb.film import ClusterFilm
from fer_perturb.forms import DoubleBatch, FormCallback
from fer_perturb.habits import parameter_groups
from fer_perturb.interpret import show_scheme
from fer_perturb.labels import DrawLabels
from fer_perturb.learner import BFloat16, LowerOnPlateau, MeanTeacher, SmallFirst, attention_learner, face_learner, perturb_learner, sgd
from fer_perturb.loaders import face_block
from fer_perturb.perturb import Clusterer
from fer_perturb.toyfaces import toy_faces
from fer_perturb.weights import load_weights, save_weights
from helpers import Attention, Net

FACES = toy_faces(90, seed=3)

def tiny(): return nn.Sequential(nn.Conv2d(1, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 7))

def loaders(vocab=None, **kwargs): return face_block(vocab or FACES.vocab, **kwargs).dataloaders(FACES, bs=16, device='cpu')

def fit(learn, epochs=1, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, 1e-3, **kwargs)
    return learn

def quiet(learn, what, *args, **kwargs):
    with learn.no_bar(), learn.no_logging(): return getattr(learn, what)(*args, **kwargs)

@pytest.fixture(scope='module')
def disk(tmp_path_factory):
    "Loaders that are not in memory"
    folder = tmp_path_factory.mktemp('disk')
    for i in range(32): Image.fromarray(FACES.images[i].numpy()).save(folder/f'{i%7}_{i}.png')
    def block(size=48):
        from fastai.vision.all import IndexSplitter, Resize, get_image_files
        return DataBlock((ImageBlock(PILImageBW), CategoryBlock(vocab=list('0123456'))), get_items=get_image_files, splitter=IndexSplitter(range(24, 32)),
                         get_y=lambda p: Path(p).name[0], item_tfms=Resize(size)).dataloaders(folder, bs=8, device='cpu')
    return block

def test_loaders_with_the_classes_in_another_order_are_refused():
    learn = face_learner(loaders(), tiny())
    with pytest.raises(ValueError, match='number the classes as angry, disgust, fear, happy, neutral'): learn.dls = loaders(sorted(FACES.vocab))
    learn.dls = loaders()

class Bodied(nn.Module):
    def __init__(self):
        super().__init__()
        self.body,self.fc = timm.create_model('test_resnet', num_classes=0, in_chans=1),nn.Linear(96, 7)
    def forward(self, x): return self.fc(self.body(x))

@pytest.mark.parametrize('kind', ['sequence', 'module'])
def test_a_body_of_timm_with_a_head_of_ones_own_learns_in_its_head(kind):
    model = Bodied() if kind=='module' else nn.Sequential(Bodied().body, nn.Linear(96, 7))
    head = model.fc if kind=='module' else model[1]
    learn = face_learner(loaders(), model)
    before = head.weight.detach().clone()
    learn.freeze()
    fit(learn)
    assert head.weight.requires_grad and not torch.equal(head.weight, before)
    assert [p for p in parameter_groups(model)[-1]]==[*head.parameters()]

def test_an_ensemble_has_all_parameters_in_groups():
    model = SoftVote([nn.Sequential(nn.Flatten(), nn.Linear(2304, 7)), tiny()], [1, 1])
    groups = parameter_groups(model)
    assert sorted(id(p) for g in groups for p in g)==sorted(id(p) for p in model.parameters())
    assert {id(p) for p in groups[-1]}=={id(p) for head in (model.members[0][1], model.members[1][7]) for p in head.parameters()}

@pytest.mark.parametrize('how', ['to_fp16', 'to_bf16', 'to_fp32'])
def test_one_precision_at_a_time(how):
    learn = face_learner(loaders(), tiny(), cbs=[MixedPrecision()])
    if not any(isinstance(cb, BFloat16) for cb in learn.cbs): learn.add_cb(BFloat16())
    assert getattr(learn, how)() is learn
    assert sum(isinstance(cb, (MixedPrecision, BFloat16)) for cb in learn.cbs)==(how!='to_fp32')

class Seen(Callback):
    order = SmallFirst.order+1
    def before_batch(self): self.size = self.xb[0].shape[-1]

def test_callbacks_that_stay_leave_predictions_alone(tmp_path):
    keep,film = Checkpoint(tmp_path/'t.pt'),ClusterFilm(FACES.images[:2])
    learn = perturb_learner(loaders(), tiny(), Attention(), cbs=[keep, film, Seen()], opt_func=sgd)
    fit(learn, 2)
    weights,frames = [p.detach().clone() for p in learn.model.parameters()],len(film.frames)
    quiet(learn, 'validate')
    quiet(learn, 'get_preds')
    assert frames==len(film.frames)==2 and all(map(torch.equal, weights, learn.model.parameters())) and all(cb.run for cb in learn.cbs)
    learn = face_learner(loaders(), Net(), cbs=[LowerOnPlateau(), SmallFirst(), Seen()], opt_func=sgd)
    quiet(learn, 'predict', FACES[0])
    quiet(learn, 'fit_quick', 1)
    quiet(learn, 'validate')
    small = face_learner(loaders(), 'test_resnet', cbs=[SmallFirst(), Seen()])
    quiet(small, 'get_preds')
    assert small.seen.size==48
    fit(small)
    assert small.seen.size==36

def test_a_callback_for_votes_leaves_predictions_alone():
    learn = face_learner(loaders(), Net(), cbs=[DrawLabels()])
    quiet(learn, 'validate')
    with pytest.raises(ValueError, match='have no votes'): fit(learn)

def test_two_views_need_loaders_that_serve_two():
    with pytest.raises(ValueError, match='serve one: give face_block'): fit(perturb_learner(loaders(), tiny(), Attention(), perturb='twice_own'))
    fit(perturb_learner(loaders(batch_tfms=[DoubleBatch()]), tiny(), Attention(), perturb='twice_own'))

def test_another_number_of_clusters_is_taken_up(tmp_path):
    learn = fit(perturb_learner(loaders(), tiny(), Attention()))
    learn.recluster.clusterer.n_clusters = 5
    fit(learn)
    assert len(learn.recluster.clusterer.centroids)==learn.recluster.k==5 and int(learn.dls.train.data.column('clusters').max())==5
    learn.recluster.clusterer = Clusterer(Attention(), 2)
    fit(learn)
    assert learn.recluster.k==2 and int(learn.dls.train.data.column('clusters').max())==2
    learn.path = tmp_path
    learn.save('two')
    with pytest.raises(ValueError, match='come with 2 clusters, the learner has 3'):
        other = perturb_learner(loaders(), tiny(), Attention(), path=tmp_path)
        other.load('two')

def test_a_mean_teacher_teaches_where_images_are_not_in_memory(disk):
    teachers = []
    class Spy(Callback):
        def after_pred(self):
            if self.training: teachers.append(self.learn.recluster.clusterer.model is self.learn.mean_teacher.mean.module)
    fit(perturb_learner(disk(), 'test_resnet', cbs=[MeanTeacher(), Spy()]))
    assert len(teachers)==3 and all(teachers)

def test_a_film_of_images_that_are_not_in_memory(disk):
    film = ClusterFilm(FACES.images[:2])
    fit(perturb_learner(disk(), tiny(), Attention(), cbs=[film]), 2)
    assert len(film.frames)==2

@pytest.mark.parametrize('stop_at', [1, 3])
def test_fine_tuning_goes_on_where_it_was_stopped(stop_at, tmp_path):
    class Stop(Callback):
        seen = 0
        def before_epoch(self):
            Stop.seen += 1
            if Stop.seen==stop_at+1: raise KeyboardInterrupt
    def tune(**kwargs):
        torch.manual_seed(1)
        learn = face_learner(loaders(), tiny())
        try:
            with learn.no_bar(), learn.no_logging(): learn.fine_tune(3, freeze_epochs=2, checkpoint=tmp_path/'kept', **kwargs)
        except KeyboardInterrupt: pass
        return [p.detach() for p in learn.model.parameters()]
    whole = tune()
    tune(cbs=[Stop()])
    assert all(map(torch.equal, whole, tune(resume=True)))

def test_weights_after_progressive_resizing_have_the_last_size(disk, tmp_path):
    learn = face_learner(disk(32), 'test_resnet')
    learn.dls = disk(64)
    again = load_weights(save_weights(learn, tmp_path/'w.safetensors'))
    assert again.dls.valid.after_item is not None and tuple(again.origin['size'])==(64, 64)

def test_a_loss_without_a_mean_does_not_end_the_training():
    learn = face_learner(loaders(), Net(), loss_func=nn.CrossEntropyLoss(reduction='none'))
    class Mean(Callback):
        def after_loss(self): self.learn.loss_grad,self.learn.loss = self.learn.loss_grad.mean(),self.learn.loss.mean()
    fit(learn, cbs=[Mean()])

def test_a_table_without_rows_and_loaders_without_a_valid_part(tmp_path):
    assert len(FACES[[]])==0 and len(FACES[torch.zeros(0, dtype=torch.int64)])==0
    block = face_block(FACES.vocab)
    block.splitter = lambda items: (list(range(len(items))), [])
    learn = face_learner(block.dataloaders(FACES, bs=16, device='cpu'), tiny(), metrics=[])
    fit(learn)
    learn.export(tmp_path/'all.pkl')
    assert (tmp_path/'all.pkl').exists()

def test_showing_a_batch_of_one_image_leaves_the_loader_as_it_was():
    dls = loaders()
    dls.show_batch(unique=True, max_n=4)
    assert sum(len(b[0]) for b in dls.train)==16*len(dls.train)

def test_a_scheme_is_shown_of_what_is_there(tmp_path):
    own = perturb_learner(loaders(), 'test_resnet')
    with pytest.raises(ValueError, match='give a perturb_learner that has been trained'): show_scheme(own, FACES.images[:2])
    fit(own)
    own.export(tmp_path/'own.pkl')
    from fastai.vision.all import load_learner
    assert show_scheme(load_learner(tmp_path/'own.pkl'), FACES.images[:2])

def test_loaders_of_a_p_model_serve_other_learners():
    first = fit(perturb_learner(loaders(), tiny(), Attention()))
    fit(perturb_learner(first.dls, tiny(), Attention()))
    fit(attention_learner(first.dls, 'test_resnet'))
    learn = fit(face_learner(face_block(FACES.vocab, clusters=True).dataloaders(FACES, bs=16, device='cpu'), tiny()))
    assert quiet(learn, 'get_preds')[0].shape==(len(learn.dls.valid_ds), 7)

def test_images_are_mixed_once_nobody_takes_maps():
    learn = perturb_learner(loaders(), tiny(), Attention())
    learn.remove_cb(learn.recluster)
    fit(learn, cbs=[MixUp()])

def test_batches_are_counted_on_after_a_stop(tmp_path):
    counted = []
    class Count(Callback):
        def after_batch(self):
            if self.training: counted.append(self.learn.train_iter)
    def train(stop): fit(face_learner(loaders(), tiny()), 2, cbs=[Checkpoint(tmp_path/'t.pt', stop=stop), Count()])
    train(lambda: True)
    train(None)
    assert counted==sorted(set(counted)) and len(counted)==2*len(loaders().train)

def test_members_of_an_ensemble_normalise_alike():
    plain,normal = (face_learner(loaders(batch_tfms=t), Net()) for t in ([], [Normalize.from_stats([.5], [.2], cuda=False)]))
    with pytest.raises(ValueError, match='normalise their images differently'): ensemble_learner([plain, normal])
    ensemble_learner([normal, normal])

def test_a_compiled_model_is_trained_in_bfloat16():
    learn = face_learner(loaders(), Net())
    if not any(isinstance(cb, BFloat16) for cb in learn.cbs): learn.add_cb(BFloat16())
    learn.model = torch.compile(learn.model, backend='eager')
    fit(learn)
    assert quiet(learn, 'get_preds')[0].isfinite().all()

@pytest.mark.parametrize('loss', [CrossEntropyLossFlat(), FocalLossFlat(), LabelSmoothingCrossEntropy()])
def test_forms_that_mix_labels_name_the_loss_that_takes_them(loss):
    with pytest.raises(ValueError, match=f'{type(loss).__name__} takes class numbers alone: give the learner loss_func=SoftCrossEntropy'):
        fit(perturb_learner(loaders(), tiny(), Attention(), perturb='cutmix', loss_func=loss))

def test_transforms_of_single_items_are_refused_where_nothing_is_single():
    with pytest.raises(ValueError, match=r'item_tfms \(Resize\) never see'): face_block(FACES.vocab).new(item_tfms=Resize(32)).dataloaders(FACES, bs=16).one_batch()

def test_the_papers_recipe_needs_a_validation_set():
    block = face_block(FACES.vocab)
    block.splitter = lambda items: (list(range(len(items))), [])
    learn = face_learner(block.dataloaders(FACES, bs=16, device='cpu'), tiny())
    with pytest.raises(ValueError, match='watches the validation set, and these loaders have none'): quiet(learn, 'fit_paper', 1)
