"What each page of the course must have, and that its exercises can be solved wrongly and rightly"
import ast
import json
import re
from pathlib import Path

import pytest

from fer_perturb.course import right, try_answer

root = Path(__file__).resolve().parent.parent
pages = sorted((root/'nbs'/'tutorials').glob('*.ipynb'))

def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']
def source(cell): return ''.join(cell['source'])
def is_solution(cell): return 'solution' in cell['metadata'].get('tags', [])

def test_the_course_has_nine_pages(): assert [p.name[:2] for p in pages]==[f'{i:02}' for i in range(1, 10)]

@pytest.fixture(params=pages, ids=lambda p: p.stem)
def page(request): return request.param

def test_what_a_page_must_have(page):
    found = cells(page)
    words = [source(c) for c in found if c['cell_type']=='markdown']
    code = [c for c in found if c['cell_type']=='code']
    everything = '\n'.join(words)
    assert '| what you build | data | device | time |' in everything
    assert "load_faces('fer2013.zip')" in '\n'.join(map(source, code)), 'one line switches to FER2013'
    assert everything.count('**Predict')>=2 and any(re.match(r'guess\w*(,guess\w*)* *=', source(c)) for c in code)
    assert '**Quiz.**' in everything and everything.count('<details>')==everything.count('</details>')>=2
    assert '## Limits' in everything and words[-1].startswith('**Next:** ')
    assert not any('default_exp' in source(c) for c in code)

def test_outputs_are_fresh_and_pictures_are_many(page):
    code = [c for c in cells(page) if c['cell_type']=='code' and 'eval: false' not in source(c)]
    kinds = [[*o.get('data', {}), o['output_type']] for c in code for o in c['outputs']]
    assert not any('error' in k for k in kinds)
    assert sum('image/png' in k for k in kinds)>=3
    assert page.stat().st_size<400_000

def test_solutions_are_folded_and_solve(page):
    "Stub, checker and solution, three times; a solution is hidden in Jupyter, on Colab and on the website, and runs with the page"
    code = [c for c in cells(page) if c['cell_type']=='code']
    at = [i for i,c in enumerate(code) if is_solution(c)]
    assert len(at)==3
    for n,i in enumerate(at, 1):
        stub,checker,solution = (source(c) for c in code[i-2:i+1])
        name = ast.parse(stub).body[0].name
        assert stub.split('#')[0].strip().endswith('...')
        assert checker.rstrip().endswith(f'try_answer({name}, check_{name})') and f'def check_{name}(f)' in checker
        assert solution.rstrip().endswith(f'assert try_answer({name}, check_{name})==right')
        assert '#| code-fold: true' in solution and f'#@title Solution {n}' in solution
        assert code[i]['metadata']['jupyter']=={'source_hidden': True} and code[i]['metadata']['cellView']=='form'

def test_wrong_and_right(page):
    "Each exercise whose checker needs nothing but torch: the stub and a wrong answer are told so, and the solution is right"
    import torch
    from torch import nn
    from torch.nn import functional as F

    from fer_perturb.landmarks import salient_pixels
    code = [c for c in cells(page) if c['cell_type']=='code']
    tried = 0
    for i,c in enumerate(code):
        if not is_solution(c): continue
        space = dict(torch=torch, nn=nn, F=F, salient_pixels=salient_pixels, try_answer=try_answer, right=right)
        stub,checker,solution = (source(x) for x in code[i-2:i+1])
        exec(stub, space)
        exec(checker, space)
        name = ast.parse(stub).body[0].name
        check = space[f'check_{name}']
        said = try_answer(space[name], check)
        if 'is not defined' in said: continue # it needs what the page made
        assert 'returns nothing' in said
        assert try_answer(lambda *args, **kwargs: -1, check).startswith('Not yet: ')
        try: exec(solution, space)
        except AssertionError: continue # its later examples need the page
        tried += 1
    assert tried>=1

def ready(number, name):
    "An exercise's checker and its solution, with stand-ins for what the page made"
    from types import SimpleNamespace

    import pandas as pd
    import torch

    from fer_perturb.landmarks import salient_pixels
    labels,said,matrix = torch.tensor([0, 1, 1, 6]),torch.tensor([0, 1, 2, 6]),torch.zeros(7, 7, dtype=torch.int64)
    for truth,answer in zip(labels, said): matrix[truth,answer] += 1
    space = dict(torch=torch, salient_pixels=salient_pixels, try_answer=try_answer, right=right, said=said, matrix=matrix,
        train=SimpleNamespace(images=torch.arange(50).view(50, 1, 1).expand(50, 2, 2)), test=SimpleNamespace(labels=labels),
        both=dict(baseline=pd.Series(dict(eyes=-1., mouth=-2.))))
    code = [source(c) for c in cells(pages[number-1]) if c['cell_type']=='code']
    at = next(i for i,c in enumerate(code) if f'def check_{name}(f)' in c)
    for c in code[at-1:at+2]: exec(c, space)
    return space[f'check_{name}'],space[name]

def sign_test(differences):
    "Looks at signs and forgets sizes"
    import torch
    sums = torch.cartesian_prod(*[torch.tensor([-1., 1.])]*len(differences)).view(-1, len(differences)).sum(1)
    return (sums.abs()>=torch.tensor(differences).sign().sum().abs()).float().mean().item()

def change_and(clear):
    "An answer to `worth` with this rule for a gain"
    def worth(before, after): return 100*(after-before).mean().item(), bool(clear(after-before))
    return worth

def all_gray_on_the_right(images, side):
    images = images.clone()
    images[...,:images.shape[-1]//2 if side=='left' else None] = 128
    return images

@pytest.mark.parametrize('number,name,wrong', [
    (1, 'recall', lambda said, labels, n: said.bincount(minlength=n)/len(said)),
    (1, 'count_twins', lambda images: int((images==images[0]).flatten(1).all(1).sum())-1),
    (2, 'macro_recall', lambda matrix: 1/len(matrix)),
    (3, 'share', lambda selected, regions: regions[selected].float().mean()/regions.float().mean()),
    (3, 'delete', lambda images, maps, share: images.masked_fill(maps>=maps.flatten(1).quantile(.75, dim=1)[:,None,None], 128)),
    (4, 'eq1', lambda p, q, spatial=1.5, intensity=1.2: sum((w*(a-b))**2 for w,a,b in zip((1.5, 1.5, 1.2), p, q))**.5),
    (5, 'hide_cluster', lambda images, clusters, k: images.masked_fill(clusters[:,None]==1, .5)),
    (5, 'sign_flips', sign_test),
    (6, 'half_gray', all_gray_on_the_right),
    (6, 'excess', lambda said, labels, c: ((said[labels==0]==0).float().mean() - (said[labels!=0]==0).float().mean()).item()),
    (7, 'worth', change_and(lambda change: change.mean().abs() > 2*change.std()/len(change)**.5)),
    (7, 'worth', change_and(lambda change: change.mean() > change.std()/len(change)**.5)),
    (7, 'worth', change_and(lambda change: change.mean() > .02)),
    (7, 'needed', lambda table: max(dict(table), key=lambda part: abs(table[part]))),
    (8, 'split_people', lambda people, share: [p==people[0] for p in people]),
    (9, 'steps', lambda images, batch, workers: images//(batch*workers)+1),
    (9, 'hours', lambda runs, minutes, gpus, at_once: -(-runs//(gpus*at_once))),
])
def test_an_answer_that_looks_right_is_told_why_it_is_not(number, name, wrong):
    check,solution = ready(number, name)
    said = try_answer(wrong, check)
    assert said.startswith('Not yet: ') and 'stops with' not in said
    assert try_answer(solution, check)==right

@pytest.mark.parametrize('number,name', [(2, 'confusion'), (3, 'delete'), (4, 'move')])
def test_an_answer_may_be_an_array(number, name):
    check,solution = ready(number, name)
    assert try_answer(lambda *args: solution(*args).numpy(), check)==right

def test_the_paper_map_is_complete_and_true():
    "Every section, equation, table and figure has a row; every symbol is where its link says"
    import importlib
    text = '\n'.join(source(c) for c in cells(root/'nbs'/'70_paper.ipynb') if c['cell_type']=='markdown')
    rows = [line.split('|')[1].strip() for line in text.split('\n') if line.startswith('| ')]
    for wanted in ['1 Introduction', '2 Related works', *[f'phase {i}' for i in (1, 2, 3)], '4.1', '4.2', '5 Evaluation', '5.1', '5.2', '6 Conclusion', 'Eq. 1',
                   *[f'Table {i}' for i in (1, 2, 3)], *[f'Figure {i}' for i in range(1, 7)]]:
        assert any(wanted in row for row in rows), wanted
    links = re.findall(r'\[`(\w+)`\]\(\d+_(\w+)\.ipynb#(?:learner\.|ferdata\.)?(\w+)\)', text)
    assert len(links)>30
    from fer_perturb.data import FERData
    for name,module,anchor in links:
        found = importlib.import_module(f'fer_perturb.{module}')
        assert anchor==name.lower() and (hasattr(found, name) or hasattr(FERData, name)), f'{module} has no {name}'
