"settings.ini, for all scripts beside this one"
import re
from configparser import ConfigParser

def settings(root):
    "What settings.ini says"
    config = ConfigParser(delimiters=['='])
    config.read(root/'settings.ini', encoding='utf-8')
    url = config['DEFAULT'].get('git_url', '').strip()
    if url and not url.startswith('https://'): raise ValueError(f'settings.ini: git_url is {url}: give an address that begins with https://, or leave it empty')
    # nbdev takes the address from there
    other = re.search(r'^Repository *= *"(.*?)/?"', (root/'pyproject.toml').read_text(encoding='utf-8') if (root/'pyproject.toml').exists() else '', re.M)
    if other and url and other[1]!=url.rstrip('/'): raise ValueError(f'settings.ini says that the repository lies at {url}, pyproject.toml that it lies at {other[1]}: one of them is wrong')
    return config['DEFAULT']
