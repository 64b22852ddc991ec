"Twins, near twins and flat images are counted, and left out only on demand and aloud"
import matplotlib.pyplot as plt
import pytest
import torch

from fer_perturb.data import FERData
from fer_perturb.evaluate import summary_table
from fer_perturb.quality import data_report, flat_images, near_twins, twin_elsewhere, twins
from fer_perturb.split import signatures


@pytest.fixture
def spoilt(faces):
    "Row 0 (Training) also in PrivateTest (row 350) and PublicTest (row 300) under another label; rows 5 and 6 equal; row 20 brighter in PrivateTest; two flat"
    images,labels = faces.images.clone(),faces.labels.clone()
    usage = torch.zeros(420, dtype=torch.uint8)
    usage[280:340],usage[340:] = 1,2
    images[300],images[350],images[6] = faces.images[0],faces.images[0],faces.images[5]
    labels[350],labels[300],labels[6] = labels[0],(labels[0]+1)%7,labels[5]
    images[360] = (faces.images[20]*.8+30).byte()
    images[10],images[290] = 0,200
    return FERData(images, labels, usage)

def test_report_counts_what_was_put_in(spoilt, capsys):
    report = data_report(spoilt)
    plt.close('all')
    assert report['flat']=={'Training': 1, 'PublicTest': 1, 'PrivateTest': 0}
    exact = report['exact']
    assert exact['unique']==417 and exact['repeats']=={'Training': 1, 'PublicTest': 0, 'PrivateTest': 0}
    assert exact['across']=={'Training–PublicTest': 1, 'Training–PrivateTest': 1, 'PublicTest–PrivateTest': 1}
    assert exact['conflicting']==1 and exact['leaked']==1
    assert report['near']['unique']==416 and report['near']['leaked']==2
    assert '2.5%' in capsys.readouterr().out

def test_groups_are_equal_exactly_where_images_are(spoilt):
    groups = twins(spoilt)
    same = (spoilt.images.flatten(1)[:,None].int()-spoilt.images.flatten(1)[None,:60].int()).abs().sum(-1)==0
    assert torch.equal(groups[:,None]==groups[None,:60], same)

def test_near_twins_survive_light_noise_and_size_but_faces_stay_apart(faces):
    x = faces.images[:100].float()
    noisy = (x*.7+20+torch.randn(x.shape)*4).clamp(0, 255).byte()
    small = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(x[:,None], 2), scale_factor=2, mode='bilinear')[:,0].byte()
    groups = near_twins(FERData(torch.cat([faces.images[:100], noisy, small]), torch.zeros(300, dtype=torch.long)))
    assert torch.equal(groups[:100], groups[100:200]) and torch.equal(groups[:100], groups[200:])
    assert len(groups.unique())>=99

def test_flat_images_are_no_near_twins(spoilt):
    groups = near_twins(spoilt)
    assert groups[10]!=groups[290] and flat_images(spoilt).nonzero()[:,0].tolist()==[10, 290]
    assert signatures(spoilt.images[[10]]).abs().sum()==0

def test_twin_free_and_without_twins(spoilt, capsys):
    private = spoilt.twin_free('PrivateTest')
    assert len(private)==79 and '1 of 80' in capsys.readouterr().out
    assert len(spoilt.twin_free('PrivateTest', near=True))==78
    once = spoilt.without_twins()
    assert '3 of 420' in capsys.readouterr().out
    assert len(once)==417 and not twin_elsewhere(once).any()
    assert len(once.part('PrivateTest'))==80 and len(once.part('PublicTest'))==59
    assert len(spoilt)==420
    with pytest.raises(ValueError, match='no part is called'): spoilt.twin_free('test')
    with pytest.raises(ValueError, match='correlation between 0 and 1'): near_twins(spoilt, 97)

def test_tables_take_the_twin_free_rows(spoilt):
    private = spoilt.part('PrivateTest')
    alone = ~twin_elsewhere(spoilt)[spoilt.usage==2]
    p = torch.nn.functional.one_hot(private.labels, 7).float()
    p[~alone] = p[~alone].roll(1, 1)
    assert summary_table({'m': p}, private.labels).loc['m', 'accuracy %']<100
    assert summary_table({'m': p[alone]}, private.labels[alone]).loc['m', 'accuracy %']==100
