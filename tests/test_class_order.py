"Names decide: an oracle, which answers with the true class, scores 100 % through every path, in whatever order classes are counted"
import json

import numpy as np
import pytest
import torch
from fastai.vision.all import Callback, CrossEntropyLossFlat, Learner, accuracy, load_learner
from torch import nn

from fer_perturb.data import EMOTIONS, FERData
from fer_perturb.demo import covered_report
from fer_perturb.ensemble import ensemble_learner
from fer_perturb.evaluate import (accuracy_change, calibration, class_accuracy, class_table, correct, macro_f1, occlusion_table,
                                  plot_confusion, predict_faces, scores, summary_table)
from fer_perturb.experiments import Results, learner_outcome, write_results
from fer_perturb.findings import right_of
from fer_perturb.labels import DrawLabels, class_weights
from fer_perturb.learner import face_learner
from fer_perturb.loaders import face_block
from fer_perturb.material import Material, run_loaders
from fer_perturb.masks import occlude, write_kaggle
from fer_perturb.readers import load_faces, save_faces
from fer_perturb.records import Place
from fer_perturb.runs import seeded
from fer_perturb.toyfaces import toy_faces

SORTED = tuple(sorted(EMOTIONS))
ORDERS = dict(csv=EMOTIONS, folders=SORTED, backwards=EMOTIONS[::-1], drawn=tuple(np.random.default_rng(1).permutation(EMOTIONS).tolist()))
pairs = [pytest.param(a, b, id=f'{x}-{y}') for x,a in ORDERS.items() for y,b in ORDERS.items() if x!=y]
some = [pytest.param(EMOTIONS, SORTED, id='csv-folders'), pytest.param(SORTED, ORDERS['drawn'], id='folders-drawn')]

class Oracle(nn.Module):
    "Answers with the class that stands in the top rows of an image, in an order of its own"
    def __init__(self, vocab):
        super().__init__()
        self.register_buffer('codes', torch.tensor([30.*EMOTIONS.index(v) for v in vocab]))
        self.scale = nn.Parameter(torch.tensor(.05))
    def forward(self, x, *clusters): return -self.scale*(x[:, 0, 0, :1]*255 - self.codes)**2

def numbered(data, vocab):
    "The same faces in another order of classes, made by hand"
    labels = torch.tensor([vocab.index(data.vocab[i]) for i in data.labels])
    return FERData(data.images, labels, data.usage, list(data.names), vocab)

@pytest.fixture(scope='module')
def told():
    "Toy faces whose top rows tell their class"
    toys = toy_faces(140)
    images = toys.images.clone()
    images[:, :4] = (30*toys.labels)[:, None, None].byte()
    return FERData(images, toys.labels, toys.usage, [f'{i}' for i in range(140)])

def learner(told, vocab, cls=face_learner):
    dls = face_block(vocab).dataloaders(numbered(told, vocab), bs=16)
    return cls(dls, Oracle(vocab), loss_func=CrossEntropyLossFlat(), metrics=accuracy)

def quiet(learn, f):
    with learn.no_bar(), learn.no_logging(): return f()

@pytest.mark.parametrize('make', [face_learner, Learner])
@pytest.mark.parametrize('ours,theirs', pairs)
def test_loaders_and_validation(told, ours, theirs, make):
    data,learn = numbered(told, theirs),learner(told, ours, make)
    mixed = make(face_block(ours).dataloaders(data, bs=16), Oracle(ours), loss_func=CrossEntropyLossFlat(), metrics=accuracy)
    assert list(mixed.dls.vocab)==list(ours) and quiet(mixed, mixed.validate)[1]==1
    other = face_block(theirs).dataloaders(data, bs=16)
    for l in (learn, mixed):
        assert quiet(l, lambda: l.validate(dl=other.valid))[1]==1 and quiet(l, lambda: l.validate(dl=other.train.new(shuffle=False, drop_last=False)))[1]==1
        assert quiet(l, lambda: l.validate(dl=l.dls.test_dl(data, with_labels=True)))[1]==1
        for dl in (other.valid, l.dls.test_dl(data.part('PublicTest'), with_labels=True)):
            p,y = quiet(l, lambda: l.get_preds(dl=dl))
            assert (p.argmax(1)==y).all() and [ours[i] for i in y]==[f.label for f in data.part('PublicTest')]
    quiet(mixed, lambda: mixed.fit(1, 0.))
    assert mixed.recorder.values[-1][2]==1
    face = data[9]
    assert quiet(learn, lambda: learn.predict(face))[0]==face.label==quiet(mixed, lambda: mixed.predict(face))[0]

@pytest.mark.parametrize('ours,theirs', pairs)
def test_tables(told, ours, theirs):
    data,learn = numbered(told, theirs).part('PrivateTest'),learner(told, ours)
    p,labels = predict_faces(learn, data),data.labels
    assert summary_table({'o': p}, labels).loc['o', 'accuracy %']==100 and correct(p, labels).all() and macro_f1(p, labels)==1
    record = scores(p, labels, data.vocab)
    assert record['accuracy']==1==record['macro_f1'] and set(record['classes'])==set(EMOTIONS) and set(record['classes'].values())=={1.}
    assert (class_accuracy(p, labels)==1).all() and accuracy_change(p, p, labels)==(0, 0, 0) and calibration(p, labels).true.eq(1).all()
    assert (class_table(p, {'o': p}, labels, data.vocab)==0).all(None)
    texts = [t.get_text() for t in plot_confusion({'o': p}, labels, data.vocab).axes[0].texts]
    assert texts[::8]==['100%']*7
    assert (occlusion_table({'o': p}, {'o': p}, labels, data.vocab)=='+0.0 (+0 to +0)').all(None)
    # predictions for a table in another order, handed to a table of labels with names
    again = predict_faces(learn, numbered(told, ours).part('PrivateTest'))
    assert again.vocab==ours and scores(again, labels, data.vocab)['accuracy']==1 and correct(again.argmax(1), labels, data.vocab).all()
    assert summary_table({'a': again, 'b': p}, labels, data.vocab)['accuracy %'].eq(100).all()
    assert (class_table(again, {'o': p}, labels, data.vocab)==0).all(None) and (occlusion_table({'o': again}, {'o': p}, labels, data.vocab)=='+0.0 (+0 to +0)').all(None)
    with pytest.raises(ValueError, match='different orders'): summary_table({'a': again, 'b': p}, labels)
    with pytest.raises(ValueError, match='different orders'): accuracy_change(again, p, labels)
    with pytest.raises(ValueError, match='different orders'): (again + p)/2

def test_names_stay_with_rows_and_leave_with_columns(told):
    from fer_perturb.evaluate import Predictions, in_order
    p = predict_faces(learner(told, EMOTIONS), told)
    for kept in (p[3:9], p[[1, 2]], p[told.usage==1], p/2, (p+p)/2, p.half(), p.half().float(), p.cpu(), p.argmax(1), p.argmax(dim=1).byte(), p.clone(), 2*p, 1-p): assert kept.vocab==EMOTIONS
    for lost in (p[:, [1, 0, 2, 3, 4, 5, 6]], p.flip(1), p.T, p[0], p.mean(0), p.argmax(0), p.roll(1, 1), p.sort(1)[0], p.index_select(1, torch.arange(7))): assert getattr(lost, 'vocab', None) is None
    assert torch.equal(in_order(p.argmax(1), SORTED), in_order(p, SORTED).argmax(1))
    with pytest.raises(ValueError, match='7 columns for 2 classes'): Predictions(p, ('a', 'b'))
    with pytest.raises(ValueError, match='7 columns for 2 classes'): scores(p, told.labels%2, ('a', 'b'))
    with pytest.raises(ValueError, match='140 predictions, but 7 labels'): correct(p, told.labels[:7])

@pytest.mark.parametrize('weights', [None, 'fit', [1, 2, 1]])
@pytest.mark.parametrize('ours,theirs', some)
def test_ensembles(told, ours, theirs, weights, tmp_path):
    members = [learner(told, v) for v in (ours, theirs, ORDERS['backwards'])]
    both = ensemble_learner(members, weights)
    assert quiet(both, both.validate)[1]==1 and list(both.dls.vocab)==list(ours)
    for vocab in ORDERS.values():
        data = numbered(told, vocab)
        assert correct(predict_faces(both, data), data.labels).all() and quiet(both, lambda: both.validate(dl=face_block(vocab).dataloaders(data, bs=16).valid))[1]==1
        assert correct(predict_faces(ensemble_learner([learner(told, vocab), both]), data), data.labels).all()
    both.path = tmp_path
    both.export('both.pkl')
    data = numbered(told, theirs)
    assert correct(predict_faces(load_learner(tmp_path/'both.pkl'), data), data.labels).all()

@pytest.mark.parametrize('ours,theirs', some)
def test_onnx(told, ours, theirs, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    from fer_perturb.export import export_onnx, predict_onnx
    members = [learner(told, v) for v in (ours, theirs)]
    for learn in (members[0], ensemble_learner(members)):
        file,data = export_onnx(learn, tmp_path/'o.onnx'),numbered(told, theirs)
        session = onnxruntime.InferenceSession(file)
        names = json.loads(session.get_modelmeta().custom_metadata_map['vocab'])
        p, = session.run(None, dict(images=(data.images[:, None]/255).numpy()))
        assert [names[i] for i in p.argmax(1)]==[f.label for f in data]
        found = predict_onnx(file, data, batch_size=50)
        assert found.vocab==theirs and correct(found, data.labels).all()

@pytest.mark.parametrize('ours,theirs', some)
def test_masks_and_what_is_written(told, ours, theirs, tmp_path):
    data,learn = numbered(told, theirs),learner(told, ours)
    landmarks = toy_faces(140).column('landmarks')
    masked = occlude(data, 'surgical', landmarks)
    assert not torch.equal(masked.images, data.images) and correct(predict_faces(learn, masked), masked.labels).all()
    table = covered_report(dict(a=learn, b=learner(told, theirs)), dict(clean=data, masks=masked))
    assert table[['a', 'b']].eq(100).all(None)
    write_kaggle(masked, tmp_path/'kaggle')
    save_faces(masked, tmp_path/'masked.npz')
    for source in ('kaggle', 'masked.npz'):
        back = load_faces(tmp_path/source, cache=False)
        assert correct(predict_faces(learn, back), back.labels).all()

def test_experiments_count_in_one_order(told, tmp_path):
    runs,place = seeded('plain', 2, epochs=1),Place(tmp_path/'results', tmp_path/'work')
    landmarks = toy_faces(140).column('landmarks')
    materials = [Material(numbered(told, v), landmarks) for v in (EMOTIONS, SORTED)]
    assert materials[0].fingerprint==materials[1].fingerprint and materials[1].faces.vocab==EMOTIONS
    for run,material in zip(runs, materials):
        learn = Learner(run_loaders(run, material), Oracle(material.faces.vocab), loss_func=CrossEntropyLossFlat())
        quiet(learn, lambda: write_results(run, learner_outcome(learn, material), material, place, {}))
    results = Results(place.results)
    assert all(results.record(r)['scores']['PublicTest'][s]['accuracy']==1 for r in runs for s in ('clean', 'masks', 'clean, two views'))
    assert (right_of(results, runs)==1).all() and right_of(results, runs).shape==(2, 14)

def test_results_of_another_order_are_mapped_and_of_other_faces_refused(told, tmp_path):
    "Results that an older version wrote in the order of folders, beside results in FER2013's"
    from fer_perturb.records import write_arrays, write_json
    runs,part = seeded('plain', 2, epochs=1),told.part('PublicTest')
    for run,vocab,name in zip(runs, (EMOTIONS, SORTED), ('aaa', 'bbb')):
        data = numbered(part, vocab)
        write_arrays(tmp_path/f'faces-{name}.npz', dict(labels=data.labels.byte().numpy(), usage=data.usage.numpy(), alone=np.ones(len(data), bool), vocab=np.array(vocab)))
        write_arrays(tmp_path/'runs'/f'{run.name}.npz', {'PublicTest/clean': data.labels.byte().numpy()})
        write_json(tmp_path/'runs'/f'{run.name}.json', dict(faces=name))
    results = Results(tmp_path)
    assert (right_of(results, runs)==1).all() and results.answers(runs[1]).vocab==SORTED
    write_arrays(tmp_path/'faces-bbb.npz', dict(labels=data.labels.byte().numpy()[::-1].copy(), usage=data.usage.numpy(), alone=np.ones(len(data), bool), vocab=np.array(SORTED)))
    with pytest.raises(ValueError, match='was scored on other faces'): right_of(Results(tmp_path), runs)

def test_a_reference_is_compared_by_name(told):
    landmarks = toy_faces(140).column('landmarks')
    assert Material(told, landmarks, numbered(told, SORTED)).reference is not None
    with pytest.raises(ValueError, match='other labels for the same faces'): Material(told, landmarks, FERData(told.images, told.labels, told.usage, list(told.names), SORTED))
    names = [Material(FERData(told.images, told.labels, told.usage, vocab=v), landmarks).fingerprint for v in (EMOTIONS, tuple('abcdefg'), tuple('hijklmn'))]
    assert len(set(names))==3

def test_votes_and_weights_move_along(told):
    data = numbered(told, SORTED)
    data = data.with_columns(votes=torch.eye(7)[data.labels])
    learn = Learner(face_block(EMOTIONS).dataloaders(data, bs=16), Oracle(EMOTIONS), CrossEntropyLossFlat(), cbs=DrawLabels())
    seen = []
    learn.add_cb(seen_labels(seen))
    quiet(learn, lambda: learn.fit(1, 0.))
    assert seen and all(seen)
    rare = told[(told.labels!=4) | (torch.arange(140)<50)]
    ours,theirs = class_weights(rare),class_weights(numbered(rare, SORTED), vocab=EMOTIONS)
    assert torch.allclose(ours, theirs) and not torch.allclose(ours, class_weights(numbered(rare, SORTED)))

def seen_labels(seen):
    class Seen(Callback):
        run_valid = False
        def before_batch(self): seen.append(bool((Oracle(EMOTIONS)(self.x).argmax(1)==self.y).all()))
    return Seen()

def test_a_kept_training_goes_on_in_its_own_order_only(told, tmp_path):
    from fer_perturb.checkpoint import Checkpoint
    class Stopped(Exception): pass
    class Stop(Callback):
        order = 2000
        def after_epoch(self):
            if self.epoch==0: raise Stopped('now')
    with pytest.raises(Stopped): quiet(l := learner(told, EMOTIONS), lambda: l.fit(2, 0., cbs=[Checkpoint(tmp_path/'c.pt'), Stop()]))
    with pytest.raises(ValueError, match='counts its classes as angry, disgust'): quiet(l := learner(told, SORTED), lambda: l.fit(2, 0., cbs=Checkpoint(tmp_path/'c.pt')))
    l = learner(told, EMOTIONS)
    quiet(l, lambda: l.fit(2, 0., cbs=Checkpoint(tmp_path/'c.pt')))
    assert l.recorder.values[-1][2]==1

def test_other_classes_are_refused_everywhere(told, tmp_path):
    smiles = FERData(told.images, (told.labels==3).long(), told.usage, vocab=('other', 'happy'))
    learn,dls = learner(told, EMOTIONS),face_block(smiles.vocab).dataloaders(smiles, bs=16)
    two = face_learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(48*48, 2)))
    eight = told.with_columns(vocab=(*EMOTIONS, 'contempt'))
    for refused in (lambda: face_block().dataloaders(smiles), lambda: learn.validate(dl=dls.valid), lambda: learn.get_preds(dl=dls.valid),
                    lambda: learn.get_preds(dl=learn.dls.test_dl(smiles, with_labels=True)), lambda: predict_faces(learn, smiles), lambda: predict_faces(learn, eight),
                    lambda: face_block().dataloaders(eight), lambda: scores(predict_faces(learn, told), told.labels, tuple('abcdefg'))):
        with pytest.raises(ValueError, match='not the same|columns for'): quiet(learn, refused)
    with pytest.raises(ValueError, match='disagree on the classes'): ensemble_learner([learn, two])
    with pytest.raises(ValueError, match="no class is called 'bored'"): learn.dls.test_dl([told[0]._replace(label='bored')], with_labels=True).one_batch()
