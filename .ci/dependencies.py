"""What stands beneath the package: every distribution that it brings here, with version and licence, and those whose licence a person has to read."""
import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from settings import settings

root = Path(__file__).resolve().parent.parent
# what is looked for in a licence, and what it means for those who pass the package on
families = {'copyleft': r'\bA?GPL|GNU (Affero )?General Public', 'copyleft for its own files': r'\bL?GPL|Lesser General|MPL|Mozilla|EPL|CDDL',
            'owned by a company': r'proprietary|EULA|NVIDIA'}

def plain(name): return re.sub(r'[-_.]+', '-', name).lower()

def brought(wanted):
    "The distributions that requirements bring here, by name; what only an extra brings, where it is installed"
    found,seen,queue = {},set(),[*map(Requirement, wanted)]
    while queue:
        requirement = queue.pop()
        name,extras = key = plain(requirement.name),frozenset(requirement.extras)
        if key in seen: continue
        seen.add(key)
        try: found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError: continue
        for r in map(Requirement, found[name].requires or []):
            if r.marker is None or any(r.marker.evaluate(dict(extra=extra)) for extra in ('', *extras)): queue.append(r)
    return found

def licence(dist):
    "What the distribution says of itself, in a line; empty if it says nothing"
    about = dist.metadata
    classes = [c.rpartition(' :: ')[2] for c in about.get_all('Classifier', []) if c.startswith('License ::')]
    first = next(iter((about.get('License') or '').strip().splitlines()), '')
    return about.get('License-Expression') or ', '.join(classes) or ('' if first.upper()=='UNKNOWN' else first[:60])

def to_read(said):
    "Why a person has to read this licence; None if it is as free as that of the package"
    if not said: return 'none is stated'
    if ' OR ' in said and any(not to_read(part) for part in said.split(' OR ')): return None # one of them may be chosen
    return next((meaning for meaning,pattern in families.items() if re.search(pattern, said, re.I)), None)

def main():
    wanted = [w for key,value in settings(root).items() if key.endswith('requirements') and key not in ('dev_requirements', 'bench_requirements')
              for w in value.split()]
    found = brought(wanted)
    missing = {plain(Requirement(w).name) for w in wanted} - found.keys()
    rows = [(name, dist.version, licence(dist)) for name,dist in sorted(found.items())]
    for row in rows: print('{:32} {:16} {}'.format(*row))
    if missing: print(f'\nNot installed here: {", ".join(sorted(missing))}')
    print(f'\n{len(rows)} distributions. Read the licences of:')
    for name,version,said in rows:
        if why := to_read(said): print(f'- {name} {version}: {why}{f" ({said})" if said else ""}')

if __name__=='__main__': main()
