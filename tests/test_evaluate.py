"Numbers that end up in tables: each against a value worked out by hand or by another library"
import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, recall_score

from fer_perturb.evaluate import (Predictions, accuracy_change, bootstrap, calibration, class_accuracy, class_table, correct, mcnemar,
                                  occlusion_table, plot_confusion, scores, seed_change, summary_table)

VOCAB = ('a', 'b', 'c')

def answers(predicted, n=3): return torch.nn.functional.one_hot(torch.tensor(predicted), n).float()

@pytest.fixture
def labels(): return torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2, 2])

def test_against_scikit_learn(labels):
    probabilities = torch.rand(10, 3).softmax(1)
    predicted = probabilities.argmax(1)
    row = summary_table({'model': probabilities}, labels).loc['model']
    assert row['accuracy %']==pytest.approx(100*accuracy_score(labels, predicted), abs=.05)
    assert row['macro F1']==pytest.approx(f1_score(labels, predicted, average='macro'), abs=5e-4)
    assert np.allclose(class_accuracy(probabilities, labels), recall_score(labels, predicted, average=None))

def test_a_class_without_images_is_not_a_number(): assert class_accuracy(answers([0, 1]), torch.tensor([0, 1]))[2].isnan()

def test_change_class_by_class(labels):
    before,after = answers([0, 0, 1, 1, 1, 1, 0, 0, 0, 0]),answers([0, 0, 0, 1, 0, 0, 2, 2, 2, 2])
    table = class_table(before, {'P': after}, labels, VOCAB)
    assert table.loc['P'].tolist()==[25, -100, 100]
    change,low,high = accuracy_change(before, after, labels)
    assert change==pytest.approx(30) and low<=30<=high

def test_bootstrap_covers_as_often_as_it_says():
    "Of 200 samples with a known mean, about 95 % have it in their interval"
    generator = torch.Generator().manual_seed(1)
    intervals = [bootstrap((torch.rand(400, generator=generator)<.7).float(), n_boot=400, seed=i) for i in range(200)]
    covered = np.mean([low<=.7<=high for low,high in intervals])
    assert .90<=covered<=.99
    assert np.mean([high-low for low,high in intervals])==pytest.approx(2*1.96*(.7*.3/400)**.5, rel=.08)

def test_the_paired_interval_is_narrower_than_two_single_ones():
    labels = torch.zeros(2000, dtype=torch.long)
    before = answers([0]*1400 + [1]*600)
    after = answers([0]*1440 + [1]*560)
    _,low,high = accuracy_change(before, after, labels)
    single = bootstrap(correct(before, labels))
    assert low>0 and high-low<100*(single[1]-single[0])

def test_confusion_rows_are_the_true_classes(labels):
    axes = plot_confusion({'model': answers([0, 0, 1, 1, 1, 1, 0, 0, 0, 0])}, labels, VOCAB).axes
    texts = [t.get_text() for t in axes[0].texts]
    assert texts==['50%', '50%', '0%', '0%', '100%', '0%', '100%', '0%', '0%']

def test_table_of_what_a_mask_costs():
    labels = torch.arange(60)%3
    right = torch.nn.functional.one_hot(labels, 4).float()
    masked = right.clone()
    masked[:30][labels[:30]==1] = torch.tensor([1., 0, 0, 0])
    table = occlusion_table({'m': right}, {'m': masked}, labels, ('a', 'b', 'c', 'd'))
    assert table.loc['m', 'a']=='+0.0 (+0 to +0)' and table.loc['m', 'b'].startswith('-50.0 (') and table.loc['m', 'd']=='–'
    low,high = (float(v) for v in table.loc['m', 'b'].split('(')[1].rstrip(')').split(' to '))
    assert low<-60 and -40<high<0
    assert table.loc['m', 'all'].startswith('-16.7')
    with pytest.raises(ValueError, match='give both for each model'): occlusion_table({'m': right}, {'n': masked}, labels, ('a', 'b', 'c', 'd'))

def test_counting_is_drawing():
    "Intervals from multinomial counts are those of drawing images one by one, for values of any kind"
    for values in ((torch.rand(800)<.3).float(), torch.randint(-1, 2, (800,)).float(), torch.randn(800)):
        drawn = torch.stack([values[torch.randint(800, (800,))].mean() for _ in range(4000)]).quantile(torch.tensor([.025, .975])).tolist()
        assert bootstrap(values, 4000)==pytest.approx(drawn, abs=.12*values.std().item()/800**.5)

def test_an_interval_over_seeds_covers_what_one_over_images_misses():
    "Models of equal strength whose seeds scatter by a point: images alone find a difference far too often"
    generator = torch.Generator().manual_seed(0)
    def trainings(s): return torch.stack([torch.rand(3000, generator=generator)<.65+.015*torch.randn(1, generator=generator) for _ in range(s)])
    missed = {True: 0, False: 0}
    for i in range(120):
        before,after = trainings(6),trainings(6)
        for both in missed:
            change,low,high = seed_change(before, after, n_boot=300, seed=i) if both else seed_change(before[:1], after[:1], n_boot=300, seed=i)
            missed[both] += not low<=0<=high
    assert missed[True]<20 and missed[False]>30

def test_seeds_are_drawn_in_pairs():
    "A strong and a weak seed: paired, the change is the same in both"
    right = torch.zeros(2, 1000)
    right[0, :800],right[1, :600] = 1,1
    better = right.clone()
    better[0, 800:820],better[1, 600:620] = 1,1
    paired,single = seed_change(right, better),seed_change(right, better, paired=False)
    assert paired[0]==pytest.approx(2) and paired[1]>0 and single[1]<0
    assert seed_change(right, better[:1])[0]==pytest.approx(12)

def test_mcnemar_counts_only_disagreements():
    before,after = torch.tensor([1, 1, 1, 0, 0, 0, 0, 0, 0]),torch.tensor([1, 1, 0, 1, 1, 1, 1, 1, 0])
    assert mcnemar(before, after)[:2]==(1, 5) and mcnemar(before, after).p==pytest.approx(2*7/64)

def test_calibration_by_hand():
    probabilities = torch.tensor([[.9, .1], [.9, .1], [.3, .7], [.6, .4]])
    table = calibration(probabilities, torch.tensor([0, 1, 1, 0]), bins=10)
    assert table.images.tolist()==[1, 1, 2] and table.true.tolist()==[1, 1, .5]
    assert table.attrs['ece']==pytest.approx((.4+.3+2*.4)/4)

def test_scores_of_classes_are_those_of_probabilities(labels):
    probabilities = torch.rand(10, 3).softmax(1)
    a,b = scores(probabilities, labels, VOCAB, torch.arange(10)>4),scores(probabilities.argmax(1).byte(), labels, VOCAB, torch.arange(10)>4)
    assert a.pop('ece')>=0 and a['twin_free'].pop('ece')>=0 and a==b and a['twin_free']['images']==5 and 'a' not in a['twin_free']['classes']

def test_predictions_take_the_options_of_functions():
    p = Predictions(torch.rand(5, 3), ('a', 'b', 'c'))
    assert torch.max(p, dim=1, keepdim=True).values.shape==(5,1) and p.argmax(1, keepdim=True).shape==(5,1)
