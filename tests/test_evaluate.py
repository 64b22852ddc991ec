"Numbers that end up in tables: each against a value worked out by hand or by another library"
import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, recall_score

from fer_perturb.evaluate import (accuracy_change, bootstrap, class_accuracy, class_table, correct, occlusion_table,
                                  plot_confusion, summary_table)

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
