"The explorer in a real browser: Voilà serves it, headless Chromium clicks"
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request

import pytest

playwright = pytest.importorskip('playwright.sync_api')
pytest.importorskip('voila')
names = 'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'
chrome = os.environ.get('FER_PERTURB_BROWSER') or next(filter(None, map(shutil.which, names)), None)
pytestmark = pytest.mark.skipif(chrome is None, reason='no Chromium here: make test-browser says how to get one')

@pytest.fixture(scope='module')
def models(tmp_path_factory):
    "Two small models, in files"
    from fer_perturb.explore import toy_models
    folder = tmp_path_factory.mktemp('models')
    for name,learn in toy_models(700, epochs=1).items(): learn.export(folder/f'{name}.pkl')
    return sorted(map(str, folder.iterdir()))

@pytest.fixture(scope='module')
def served(models, tmp_path_factory):
    "Where the page is served, and the server's own folder; Ctrl-C ends it"
    home = tmp_path_factory.mktemp('home')
    code = f'from fer_perturb.explore import serve; serve({models!r}, browser=False)'
    with open(home/'log', 'w') as log:
        server = subprocess.Popen([sys.executable, '-c', code], cwd=home, stdout=subprocess.PIPE, stderr=log, text=True,
                                  env=os.environ | dict(TMPDIR=str(home), FER_PERTURB_CACHE=str(home/'cache'), JUPYTER_RUNTIME_DIR=str(home/'runtime')))
        yield re.search(r'http://127\.0\.0\.1:\d+', server.stdout.readline())[0],home
        server.send_signal(signal.SIGINT)
        try: code = server.wait(30)
        finally: server.kill()
    assert code==0, (home/'log').read_text()[-2000:]

@pytest.fixture(scope='module')
def browser():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chrome, args=['--no-sandbox'])
        yield browser
        browser.close()

def files(folder): return sorted((str(p), p.stat().st_size) for p in folder.rglob('*') if p.is_file() and p.suffix!='.json' and p.name!='log')

def opened(browser, address, **size):
    "The page, once its first answer is there"
    page = browser.new_page(viewport=size or dict(width=1280, height=900))
    page.set_default_timeout(120_000)
    for _ in range(60): # Voilà needs a few seconds until it listens
        try: urllib.request.urlopen(address, timeout=120).close(); break
        except OSError: page.wait_for_timeout(500)
    page.goto(address)
    page.wait_for_selector('[data-which=changed]', state='attached') # a bar of 0 % is not visible
    page.set_default_timeout(30_000)
    return page

def probabilities(page, which='changed', model=None):
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
    for _ in range(300):
        if probe(page)!=old: return probe(page)
        page.wait_for_timeout(100)
    raise AssertionError(f'nothing changed: {probe(page)}')

def test_a_page_in_chromium(browser, served, tmp_path):
    from PIL import Image
    address,folder = served
    outside,page = [],opened(browser, address)
    before = files(folder)
    page.on('response', lambda r: None if r.url.startswith((address, 'data:', 'blob:')) else outside.append(r.url))
    if shots := os.environ.get('FER_PERTURB_SHOTS'): page.screenshot(path=f'{shots}/desktop.png', full_page=True)
    whole = probabilities(page, 'whole')
    assert len(whole)==14 and all(abs(sum(p for (m,_),p in whole.items() if m==model)-1)<.01 for model in ('P-model', 'baseline'))
    assert probabilities(page)==whole

    # a region, a mask, a slider
    after(page, lambda: page.get_by_role('button', name='mouth').click())
    after(page, lambda: page.get_by_role('button', name='mouth').click())
    assert probabilities(page)==whole
    after(page, lambda: page.get_by_label('Wears').select_option('sunglasses'))
    after(page, lambda: page.get_by_label('Wears').select_option('nothing'))
    assert probabilities(page)==whole
    after(page, lambda: page.get_by_role('button', name='cluster 1').click())
    handle = page.locator('.explore .noUi-handle').nth(3)
    def drag():
        handle.focus()
        for _ in range(6): page.keyboard.press('ArrowRight')
    after(page, drag)
    after(page, lambda: page.get_by_label('Saliency').select_option('gradient'), lambda p: p.locator('.explore-saliency img').count())
    assert page.locator('.explore-saliency img').count()==4
    assert probabilities(page, 'whole')==whole
    if shots: page.screenshot(path=f'{shots}/desktop_changed.png', full_page=True)

    # files: a good one, a text, 30 million pixels
    def send(name, content):
        (tmp_path/name).write_bytes(content)
        return after(page, lambda: choose(page, tmp_path/name), message)
    assert 'not a picture' in send('letter.png', b'to whom it may concern')
    Image.new('1', (6000, 5000)).save(tmp_path/'huge.png')
    assert '30 million pixels' in send('huge.png', (tmp_path/'huge.png').read_bytes())
    assert 'at most 8 MB' in send('<img src=x onerror=alert(1)>.png', os.urandom(15*2**20)) # more than a websocket takes by default
    assert probabilities(page, 'whole')==whole
    if shots: page.screenshot(path=f'{shots}/refused.png')
    Image.effect_noise((300, 400), 60).convert('RGB').save(tmp_path/'good.jpg')
    after(page, lambda: choose(page, tmp_path/'good.jpg'), lambda p: probabilities(p, 'whole'))
    assert 'No face was found' in message(page)
    assert files(folder)==before, 'an upload was written to disk'
    assert not outside, 'the page fetched something from elsewhere'
    page.close()

def test_a_page_on_a_phone(browser, served):
    page = opened(browser, served[0], width=390, height=844)
    if shots := os.environ.get('FER_PERTURB_SHOTS'): page.screenshot(path=f'{shots}/phone.png', full_page=True)
    assert page.evaluate('document.documentElement.scrollWidth')<=390, 'the page is wider than the screen'
    page.close()
