"How long `import fer_perturb.learner` takes"
from .common import Table, child, ratio, spread

modules = ('fastai.vision.all', 'fer_perturb.learner')

def import_seconds(
    module:str, # to import in a fresh interpreter
)->float: # seconds, without the interpreter's own start
    return child('-c', f'import time; start = time.perf_counter(); import {module}; print(time.perf_counter()-start)')

def tables(
    settings, # `Settings`
)->list: # of `Table`
    "Fresh interpreters, in turn"
    for module in modules: import_seconds(module) # files into the page cache, bytecode written
    times = {module: [] for module in modules}
    for _ in range(settings.pick(3, 1)):
        for module in modules: times[module].append(import_seconds(module))
    rows = [(f'`{m}`', spread(times[m]), ratio(times[m], times['fastai.vision.all'])) for m in modules]
    return [Table('Import', ('module', 'seconds', 'time / fastai'), rows, 'In fresh interpreters, whose own start is not in the time.')]
