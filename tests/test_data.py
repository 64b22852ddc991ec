"The table of faces: what its parts share, what columns must be, and what keeps them"
import numpy as np
import pytest
import torch

from fer_perturb.augment import FaceAugment
from fer_perturb.data import USAGES, FERData, show_faces
from fer_perturb.landmarks import add_landmarks
from fer_perturb.loaders import face_block
from fer_perturb.masks import maskfer, occlude
from fer_perturb.perturb import with_clusters
from fer_perturb.readers import load_faces, read_faces, save_faces
from fer_perturb.toyfaces import draw_faces


@pytest.fixture
def voted(faces):
    "Faces with columns that this package never heard of: numbers of several types, and texts"
    n = len(faces)
    return faces.with_columns(votes=torch.rand(n, 8), clusters=torch.randint(0, 4, (n, 48, 48), dtype=torch.uint8),
                              age=np.arange(n), sure=torch.arange(n)%2==0, source=[f'film {i}' for i in range(n)])

extra = ['votes', 'clusters', 'regions', 'age', 'sure', 'source']

def same(a, b): return bool((a==b).all()) and a.shape==b.shape and a.dtype==b.dtype

def test_tables_share_images(faces):
    part = faces.part('Training')[10:20]
    assert part.columns is faces.columns
    assert torch.equal(part.images, faces.images[faces.usage==0][10:20])

def rows_of(data, rows): return {name: data.column(name)[rows.numpy() if name=='source' else rows] for name in extra}

def test_columns_survive_parts_and_indices(voted):
    for usage in range(3):
        rows = torch.where(voted.usage==usage)[0]
        for table,expected in ((voted.part(USAGES[usage]), rows), (voted.part(USAGES[usage])[3:9], rows[3:9]), (voted.part(USAGES[usage])[[5, 2]], rows[[5, 2]])):
            for name,values in rows_of(voted, expected).items(): assert same(table.column(name), values), name

def test_columns_survive_a_move(voted):
    copy = voted.with_columns().to('meta')
    assert copy.column_names==voted.column_names
    assert all(copy.column(name).device.type=='meta' for name in extra if name!='source')
    assert voted.column('votes').device.type=='cpu'

def test_columns_survive_saving_and_reading(voted, tmp_path):
    for table in (voted, voted.part('PublicTest')):
        save_faces(table, tmp_path/'voted.npz')
        for back in (read_faces(tmp_path/'voted.npz'), load_faces(tmp_path/'voted.npz')):
            assert back.vocab==table.vocab and back.column_names==table.column_names
            for name in table.column_names: assert same(back.column(name), table.column(name)), name

def test_columns_may_have_any_name(faces, tmp_path):
    odd = faces[:7].with_columns(file=range(7), allow_pickle=range(7), self_=range(7))
    save_faces(odd, tmp_path/'odd.npz')
    assert read_faces(tmp_path/'odd.npz').column('file').tolist()==list(range(7))

@pytest.mark.parametrize('hide', [maskfer, lambda data, landmarks: occlude(data, 'sunglasses', landmarks)])
def test_columns_survive_masks(voted, hide):
    landmarks = draw_faces(torch.arange(len(voted))%7, seed=5).landmarks
    part = voted.usage==1
    for table,points in ((voted, landmarks), (voted.part('PublicTest'), landmarks[part])):
        masked = hide(table, points)
        assert masked.column('covered').shape==table.images.shape and not torch.equal(masked.images, table.images)
        for name in extra: assert same(masked.column(name), table.column(name)), name
    assert 'covered' not in voted.column_names

def test_columns_survive_landmarks_that_are_added(voted, tmp_path):
    np.savez(tmp_path/'l.npz', names=voted.names, landmarks=draw_faces(torch.arange(len(voted))%7, seed=5).landmarks, detected=np.ones(len(voted), bool))
    found = add_landmarks(voted.part('PublicTest'), tmp_path/'l.npz')
    assert same(found.column('votes'), voted.part('PublicTest').column('votes')) and not same(found.regions, voted.part('PublicTest').regions)

def test_columns_survive_loaders_and_loaders_with_clusters(voted):
    plain = face_block(batch_tfms=FaceAugment()).dataloaders(voted, bs=16)
    for dls in (plain, with_clusters(plain)):
        for dl,usage in zip(dls.loaders, USAGES):
            for name in extra:
                if name=='clusters' and dls is not plain: assert dl.data.column(name) is None # these begin without
                else: assert same(dl.data.column(name), voted.part(usage).column(name)), name

def test_a_new_table_leaves_the_old_one_alone_and_shares_what_is_the_same(faces):
    new = faces.with_columns(labels=(faces.labels+1)%7, regions=None)
    assert new.regions is None and faces.regions is not None
    assert torch.equal((new.labels-faces.labels)%7, torch.ones(len(faces), dtype=torch.long))
    assert new.columns['images'] is faces.columns['images']
    part = faces.part('PublicTest').with_columns(votes=torch.ones(42, 7))
    assert len(part.columns['images'])==42 and faces.column('votes') is None

def test_some_rows_are_written_for_the_whole_table_and_for_nobody_else(faces):
    table = faces.with_columns()
    before,train = table.labels.clone(),table.part('Training')
    train.set_rows('labels', (train.labels+1)%7)
    changed = table.labels!=before
    assert torch.equal(changed, table.usage==0) and torch.equal(faces.labels, before)
    train.set_rows('votes', torch.ones(len(train), 3))
    assert torch.equal(table.column('votes').sum(1), 3.*(table.usage==0)) and faces.column('votes') is None
    kept = table.column('votes')
    table[:5].set_rows('votes', torch.zeros(5, 3))
    assert kept[:5].sum()>0 # what was read before is not written to
    train.set_rows('source', ['a longer text']*len(train))
    table.part('PrivateTest')[:1].set_rows('source', ['one that is longer still'])
    assert set(table.column('source'))=={'', 'a longer text', 'one that is longer still'}

@pytest.mark.parametrize('columns, message', [
    (dict(votes=torch.ones(5, 7)), '420 images, but 5 votes'), (dict(names=['a']), '420 images, but 1 names'),
    (dict(clusters=torch.ones(420, 48, 48)), 'clusters are torch.float32: give torch.uint8'),
    (dict(regions=torch.ones(420, 24, 24, dtype=torch.uint8)), r'regions are \(420, 24, 24\), the images \(420, 48, 48\)'),
    (dict(labels=torch.full((420,), 7)), 'labels go from 7 to 7'), (dict(labels=torch.rand(420)), 'give whole numbers'),
    (dict(images=torch.rand(420, 48, 48)), 'give uint8'), (dict(votes=torch.ones(420, 7, device='meta')), 'votes are on meta, the images on cpu'),
    (dict(vocab=('a', 'b')), 'labels go from 0 to 6'), (dict(images=None), 'every table has them')])
def test_columns_that_do_not_fit(faces, columns, message):
    before = faces.column_names
    with pytest.raises(ValueError, match=message): faces.with_columns(**columns)
    assert faces.column_names==before

@pytest.mark.parametrize('name, values, message', [
    ('votes', torch.ones(42, 3), '336 images, but 42 votes'), ('labels', torch.full((336,), 9), 'labels go from'),
    ('regions', torch.ones(336, 48, 48), 'give torch.uint8'), ('regions', torch.ones(336, 4, 4, dtype=torch.uint8), 'give the same'),
    ('usage', ['x']*336, 'give the same'), ('extra', torch.ones(336, device='meta'), 'the images on cpu')])
def test_rows_that_do_not_fit(faces, name, values, message):
    table = faces.with_columns()
    before = {n: table.column(n) for n in table.column_names}
    with pytest.raises(ValueError, match=message): table.part('Training').set_rows(name, values)
    assert list(before)==table.column_names and all(same(table.column(n), v) for n,v in before.items())

def test_a_constructor_checks_its_columns(faces):
    with pytest.raises(ValueError, match='3 images, but 2 names'): FERData(faces.images[:3], [0, 1, 2], names=['a', 'b'])
    with pytest.raises(ValueError, match='regions are torch.float32'): FERData(faces.images[:3], [0, 1, 2], regions=torch.rand(3, 48, 48))
    assert FERData(faces.images[:0], []).images.shape==(0, 48, 48)

def test_rows_stay_on_the_cpu_under_another_default_device(faces):
    "As with `torch.set_default_device('cuda')`: here with a device that has no values, so that whatever lands there fails"
    images,labels,usage = faces.images,faces.labels,faces.usage
    with torch.device('meta'):
        data = FERData(images, labels, usage)
        assert repr(data)==repr(faces) and data.part('PublicTest')[3].label==faces.part('PublicTest')[3].label
        assert [f.name for f in data[[5, 2]]]==['5', '2'] and list(data.names[:2])==['0', '1']
        part = data.part('PublicTest').with_columns(source=['a']*42)
        part[:5].set_rows('source', ['b']*5)
        assert part.rows.device.type=='cpu' and list(part.column('source')).count('b')==5
        assert {u: c.tolist() for u,c in data.class_counts().items()}=={u: c.tolist() for u,c in faces.class_counts().items()}

def test_a_batch_of_faces_and_clusters_is_shown_as_it_comes(faces):
    "fastai's tensor types do not mix by themselves"
    import matplotlib.pyplot as plt
    x,clusters,_ = face_block(clusters=True).dataloaders(faces.with_columns(clusters=faces.regions), bs=8).one_batch()
    shown = show_faces(x, overlay=clusters).axes[0].images[0].get_array()
    assert (shown[..., 0]!=shown[..., 2])[clusters[0].numpy()>0].mean()>.9
    plt.close('all')
