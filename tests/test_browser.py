"The explorer in a real browser: Voilà serves it, headless Chromium clicks"
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request

import pytest
import torch
from PIL import Image

from helpers import quietly

playwright = pytest.importorskip('playwright.sync_api')
pytest.importorskip('voila')
names = 'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'
chrome = os.environ.get('FER_PERTURB_BROWSER') or next(filter(None, map(shutil.which, names)), None)
pytestmark = pytest.mark.skipif(chrome is None, reason='no Chromium here: make test-browser says how to get one')

@pytest.fixture(scope='module')
def models(tmp_path_factory, faces):
    "Two small models, in files; they have seen a few faces"
    from fer_perturb.explore import toy_network
    from fer_perturb.learner import attention_learner, face_learner
    from fer_perturb.loaders import face_block
    folder,few = tmp_path_factory.mktemp('models'),face_block().dataloaders(faces, bs=16)
    torch.manual_seed(0)
    quietly(face_learner(few, toy_network()), 3, .01).export(folder/'baseline.pkl')
    quietly(attention_learner(few, toy_network(), stages=['0','1','2','3']), 3, .01).export(folder/'P-model.pkl')
    return sorted(map(str, folder.iterdir()))

@pytest.fixture(scope='module')
def served(models, tmp_path_factory):
    "Where the page is served, and the server's own folder; Ctrl-C ends it"
    home = tmp_path_factory.mktemp('home')
    code = f'from fer_perturb.explore import serve; serve({models!r}, browser=False)'
    with open(home/'log', 'w') as log:
        server = subprocess.Popen([sys.executable, '-c', code], cwd=home, stdout=subprocess.PIPE, stderr=log, text=True,
                                  preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), # a test run in the background ignores Ctrl-C
                                  env=os.environ | dict(TMPDIR=str(home), FER_PERTURB_CACHE=str(home/'cache'), JUPYTER_RUNTIME_DIR=str(home/'runtime')))
        yield re.search(r'http://127\.0\.0\.1:\d+', server.stdout.readline())[0],home
        server.send_signal(signal.SIGINT)
        try: code = server.wait(30)
        finally: server.kill()
    assert code==0, (home/'log').read_text()[-2000:]

@pytest.fixture(scope='module')
def browser():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chrome, args=['--no-sandbox', '--use-fake-device-for-media-stream', '--use-fake-ui-for-media-stream'])
        yield browser
        browser.close()

def files(folder): return sorted((str(p), p.stat().st_size) for p in folder.rglob('*') if p.is_file() and p.suffix!='.json' and p.name!='log')

@pytest.fixture(scope='module')
def page(browser, served):
    "The page, once its first answer is there; `outside` lists what it got from elsewhere"
    address,_ = served
    page = browser.new_page(viewport=dict(width=1280, height=900))
    page.outside = []
    page.on('response', lambda r: None if r.url.startswith((address, 'data:', 'blob:')) else page.outside.append(r.url))
    page.set_default_timeout(120_000)
    for _ in range(60): # Voilà needs a few seconds until it listens
        try: urllib.request.urlopen(address, timeout=120).close(); break
        except OSError: page.wait_for_timeout(500)
    page.goto(address)
    page.wait_for_selector('[data-which=changed]', state='attached') # a bar of 0 % is not visible
    page.set_default_timeout(30_000)
    return page

def shot(page, name):
    "A screenshot, for those who ask for it"
    if folder := os.environ.get('FER_PERTURB_SHOTS'): page.screenshot(path=f'{folder}/{name}.png', full_page=True)

def probabilities(page, which='changed'):
    "What the bars say, {(model, class): probability}"
    bars = page.locator(f'[data-which={which}]').all()
    return {(b.get_attribute('data-model'), b.get_attribute('data-class')): float(b.get_attribute('data-value')) for b in bars}

def message(page): return page.locator('.explore-message [role=status]').inner_text()

def choose(page, path):
    "Upload a file as somebody with a mouse does"
    with page.expect_file_chooser() as chooser: page.get_by_role('button', name='Upload').click()
    chooser.value.set_files(path)

def after(page, act, probe=probabilities):
    "What `probe` finds once it has changed"
    old = probe(page)
    act()
    for _ in range(150):
        if probe(page)!=old: return probe(page)
        page.wait_for_timeout(100)
    shot(page, 'unchanged')
    raise AssertionError(f'nothing changed: {probe(page)}; the page says {message(page)!r}')

def test_what_a_click_changes(page):
    shot(page, 'desktop')
    whole = probabilities(page, 'whole')
    assert len(whole)==14 and all(abs(sum(p for (m,_),p in whole.items() if m==model)-1)<.01 for model in ('P-model', 'baseline'))
    assert probabilities(page)==whole
    mouth,wears = page.get_by_role('button', name='mouth'),page.get_by_label('Wears')
    for act,undo in ((mouth.click, mouth.click), *[(lambda: wears.select_option('sunglasses'), lambda: wears.select_option('nothing'))]):
        after(page, act)
        after(page, undo)
        assert probabilities(page)==whole
    after(page, page.get_by_role('button', name='cluster 1').click)
    def drag():
        page.locator('.explore .noUi-handle').nth(3).focus() # keep
        for _ in range(6): page.keyboard.press('ArrowRight')
    after(page, drag)
    assert probabilities(page, 'whole')==whole

def test_what_a_model_looks_at(page):
    maps = page.locator('.explore-saliency img')
    assert maps.count()==0
    after(page, lambda: page.get_by_label('Saliency').select_option('gradient'), lambda page: maps.count())
    assert maps.count()==4
    shot(page, 'desktop_changed')

def test_files_that_somebody_sends(page, served, tmp_path):
    whole,before = probabilities(page, 'whole'),files(served[1])
    def send(name, content):
        (tmp_path/name).write_bytes(content)
        return after(page, lambda: choose(page, tmp_path/name), message)
    assert 'not a picture' in send('letter.png', b'to whom it may concern')
    Image.new('1', (6000, 5000)).save(tmp_path/'huge.png')
    assert '30 million pixels' in send('huge.png', (tmp_path/'huge.png').read_bytes())
    # more than a websocket takes by default, and a name that would be a script if it were not escaped
    assert 'at most 8 MB' in send('<img src=x onerror=alert(1)>.png', os.urandom(15*2**20))
    assert probabilities(page, 'whole')==whole
    shot(page, 'refused')
    Image.effect_noise((300, 400), 60).convert('RGB').save(tmp_path/'good.jpg')
    after(page, lambda: choose(page, tmp_path/'good.jpg'), lambda p: probabilities(p, 'whole'))
    assert 'No face was found' in message(page) and page.locator('.explore-message img').count()==0
    assert files(served[1])==before, 'an upload was written to disk'
    assert not page.outside, 'the page fetched something from elsewhere'

def test_camera(page):
    "Chromium's pretended camera shows a green picture with a clock"
    pytest.importorskip('anywidget')
    page.get_by_role('button', name='Camera').click()
    page.wait_for_function("document.querySelector('.explore video').videoWidth>0")
    shot(page, 'camera')
    after(page, page.get_by_role('button', name='Take the picture').click, lambda p: probabilities(p, 'whole'))
    assert 'No face was found' in message(page) and page.locator('.explore video').is_hidden()

def test_on_a_phone(page):
    page.set_viewport_size(dict(width=390, height=1400))
    page.wait_for_timeout(500)
    shot(page, 'phone')
    wide = page.evaluate("Math.max(...[...document.querySelectorAll('.explore *')].map(e => e.getBoundingClientRect().right))")
    assert wide<=390, 'the page is wider than the screen'
    pictures,face = (page.locator(s).bounding_box()['y'] for s in ('.explore-pictures', '.explore select >> nth=0'))
    assert pictures<face, 'the pictures stand below what changes them'
