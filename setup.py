"Reads the package's metadata from settings.ini; see the `dynamic` fields of pyproject.toml."
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read(here/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
statuses = {3: '3 - Alpha', 4: '4 - Beta', 5: '5 - Production/Stable'}
extras = {key.removesuffix('_requirements'): value.split() for key,value in cfg.items() if key.endswith('_requirements')}

setup(
    version=re.search(r'__version__ = "(.+)"', (here/'fer_perturb'/'__init__.py').read_text(encoding='utf-8'))[1],
    description=cfg['description'], long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    author=cfg['author'], license_expression=cfg['license'], keywords=cfg['keywords'].split(), python_requires=f'>={cfg["min_python"]}',
    classifiers=[f'Development Status :: {statuses[cfg.getint("status")]}', 'Intended Audience :: Education', 'Intended Audience :: Science/Research',
                 'Programming Language :: Python :: 3'],
    install_requires=cfg['requirements'].split(), extras_require=extras, packages=['fer_perturb', 'fer_perturb.pretrained'],
    package_data=dict(fer_perturb=['pretrained/*']))
