"The table of faces: what its parts share, what columns must be, and what keeps them"
import numpy as np
import pandas as pd
import pytest
import torch

from fer_perturb.augment import FaceAugment
from fer_perturb.data import EMOTIONS, USAGES, FERData, show_faces
from fer_perturb.landmarks import add_landmarks
from fer_perturb.loaders import face_block
from fer_perturb.masks import maskfer, occlude
from fer_perturb.perturb import with_clusters
from fer_perturb.readers import from_frame, load_faces, read_faces, save_faces
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

wrong_columns = {
    'usage of 3': (dict(usage=[0, 1, 2, 3, 0, 0]), 'usage go from 0 to 3'), 'usage of -1': (dict(usage=[0, 1, -1, 0, 0, 0]), 'usage go from -1 to 1'),
    'usage of 256, which a byte would wrap': (dict(usage=[0, 256, 1, 2, 0, 0]), 'usage go from 0 to 256'), 'usage in floats': (dict(usage=[0., 1, 2, 0, 0, 0]), 'usage are torch.float64: give whole numbers'),
    'usage in words': (dict(usage=['train']*6), "usage are texts, such as 'train'"), 'two parts an image': (dict(usage=[[0, 1]]*6), r'usage are of shape \(6, 2\)'), 'one part for all': (dict(usage=[0]), '6 images, but 1 usage'),
    'too few names': (dict(names=['a', 'b']), '6 images, but 2 names'), 'one name for all': (dict(names='face'), '6 images, but 1 names'), 'two names an image': (dict(names=[['a', 'b']]*6), r'names are of shape \(6, 2\)'),
    'one-hot labels': (dict(labels=torch.eye(7)[:6].long()), r'labels are of shape \(6, 7\): give one for each image'), 'labels in a column': (dict(labels=torch.zeros(6, 1).long()), r'labels are of shape \(6, 1\)'),
    'NaN as label': (dict(labels=[0, 1, np.nan, 2, 3, 4]), 'labels are torch.float64: give whole numbers'), 'label 7 of 7': (dict(labels=[0, 1, 7, 2, 3, 4]), 'labels go from 0 to 7: with 7 classes'),
    'label -1': (dict(labels=[0, -1, 2, 2, 3, 4]), 'labels go from -1 to 4'), 'labels in words': (dict(labels=['happy']*6), "labels are texts, such as 'happy'"), 'no labels': (dict(labels=[None]*6), 'labels are texts'),
    'complex labels': (dict(labels=torch.zeros(6, dtype=torch.complex64)), 'give whole numbers'), 'one label': (dict(labels=3), '6 images, but 1 labels'),
    'a class twice': (dict(vocab=('happy', 'sad', 'happy', 'fear', 'angry', 'x', 'y')), 'happy is in vocab more than once'), 'a text as vocab': (dict(vocab='abcdefg'), 'give a list of class names'),
    'a class without a name': (dict(vocab=('a', '', 'c', 'd', 'e', 'f', 'g')), 'class 1 has no name'), 'too few classes': (dict(vocab=('a', 'b')), 'with 2 classes'),
    'the same number twice': (dict(vocab=(0, 1, '1', 3, 4, 5, 6)), '1 is in vocab more than once')}
wrong_votes = {
    'NaN': (np.nan, 'votes of row 2 are NaN or infinite'), 'infinite': (np.inf, 'votes of row 2 are NaN or infinite'), 'minus infinite': (-np.inf, 'votes of row 2 are NaN or infinite'), 'negative': (-1, 'votes of row 2 are negative')}

def with_vote(bad):
    votes = np.ones((6, 7))
    votes[2, 3] = bad
    return votes

@pytest.mark.parametrize('kind', wrong_columns)
def test_what_a_table_is_given(faces, kind):
    "From arrays, tensors and lists"
    columns,sentence = wrong_columns[kind]
    for images in (faces.images[:6], faces.images[:6].numpy()):
        with pytest.raises(ValueError, match=sentence): FERData(images, **(dict(labels=[0, 1, 2, 3, 4, 5]) | columns))
    with pytest.raises(ValueError, match=sentence): FERData(faces.images[:6], [0, 1, 2, 3, 4, 5]).with_columns(**columns)

@pytest.mark.parametrize('kind', wrong_votes)
def test_votes_are_finite_and_not_negative(faces, kind):
    bad,sentence = wrong_votes[kind]
    for votes in (with_vote(bad), torch.from_numpy(with_vote(bad))):
        with pytest.raises(ValueError, match=sentence): faces[:6].with_columns(votes=votes)
        with pytest.raises(ValueError, match=sentence): faces[:6].set_rows('votes', torch.as_tensor(votes))
    with pytest.raises(ValueError, match='votes are texts'): faces[:6].with_columns(votes=['many']*6)

def npz(path, faces, vocab, **columns):
    "A file as `save_faces` writes it, with whatever in it"
    values = dict(images=faces.images[:6].numpy(), labels=np.arange(6), usage=np.zeros(6, np.uint8), names=np.array([*'abcdef'])) | columns
    np.savez(path, vocab=np.array(vocab), **{f'column_{k}': np.asarray(v) for k,v in values.items()})
    return path

@pytest.mark.parametrize('columns, sentence', [
    (dict(usage=[0, 1, 2, 3, 0, 0]), 'usage go from'), (dict(usage=[0, 256, 1, 2, 0, 0]), 'usage go from'), (dict(names=[*'ab']), 'but 2 names'), (dict(labels=np.eye(7, dtype=int)[:6]), 'labels are of shape'),
    (dict(labels=np.arange(6)+2), 'labels go from'), (dict(votes=with_vote(np.nan)), 'votes of row 2'), (dict(votes=with_vote(-1)), 'votes of row 2'), (dict(vocab=['a']*7), 'a is in vocab'), (dict(images=np.zeros((6, 48, 48))), 'give uint8')])
def test_files_are_checked_as_arrays_are(faces, tmp_path, columns, sentence):
    path = npz(tmp_path/'bad.npz', faces, **(dict(vocab=list('abcdefg')) | columns))
    for read in (read_faces, load_faces):
        with pytest.raises(ValueError, match=sentence): read(path)

def test_a_frame_is_checked_as_arrays_are(faces):
    frame = pd.DataFrame(dict(image=pd.Series([f.image.numpy() for f in faces[:6]], dtype=object), label=['b', 'a']*3, split=['train']*4 + ['valid', 'test']))
    with pytest.raises(ValueError, match='b is in vocab more than once'): from_frame(frame, 'image', 'label', 'split', vocab=('b', 'a', 'b'))
    assert from_frame(frame, 'image', 'label', 'split', vocab=('b', 'a')).labels.tolist()==[0, 1]*3

def test_a_table_of_arrays_equals_one_of_tensors(faces):
    read_only = faces.images[:6].numpy().copy()
    read_only.flags.writeable = False
    for images in (faces.images[:6].numpy(), read_only, faces.images[:6].tolist()):
        if isinstance(images, list): images = np.array(images, np.uint8)
        data = FERData(images, np.arange(6), np.array([0, 0, 1, 1, 2, 2]), np.array([*'abcdef']), list('abcdefg'))
        assert torch.equal(data.images, faces.images[:6]) and data.vocab==tuple('abcdefg') and [f.name for f in data]==[*'abcdef'] and data.usage.tolist()==[0, 0, 1, 1, 2, 2]
    assert FERData(faces.images[:2], [0, 1], vocab=(0, 1)).vocab==('0', '1')

@pytest.mark.parametrize('wanted', [('neutral', 'angry', 'disgust', 'fear', 'happy', 'sad', 'surprise'), ('surprise', 'sad', 'neutral', 'happy', 'fear', 'disgust', 'angry')])
def test_another_order_keeps_every_class(faces, wanted):
    votes = torch.rand(420, 7)
    data = faces.with_columns(votes=votes)
    for table in (data, data.part('PublicTest'), data[[5, 2, 9]]):
        other = table.in_order(wanted)
        assert other.vocab==wanted and [f.label for f in other]==[f.label for f in table] and torch.equal(other.images, table.images)
        assert torch.equal(other.column('votes')[:, wanted.index('happy')], table.column('votes')[:, 3])
        assert torch.equal(other.in_order(table.vocab).labels, table.labels) and torch.equal(other.in_order(table.vocab).column('votes'), table.column('votes'))
    assert data.vocab==EMOTIONS and torch.equal(data.column('votes'), votes)
    for others in (wanted[:6], (*wanted, 'contempt'), ('Happy', *[w for w in wanted if w!='happy'])):
        with pytest.raises(ValueError, match='not the same'): data.in_order(others)

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
