"Which script answers what: `python -m benchmarks`"
import ast
from pathlib import Path

def first_lines(
    folder:Path, # with scripts
)->dict: # name of a script -> first line of what it says of itself
    "What each script is for; those that others are made of are left out"
    texts = {p.stem: ast.get_docstring(ast.parse(p.read_text(encoding='utf-8'))) for p in sorted(folder.glob('*.py'))}
    return {name: text.splitlines()[0].partition(f': python -m benchmarks.{name}')[0].partition(': `python -m')[0]
            for name,text in texts.items() if name.strip('_')==name and name!='common'}

def main():
    said = first_lines(Path(__file__).parent)
    width = max(map(len, said))
    print('python -m benchmarks.NAME, and --help for its options:\n', *(f'{name:<{width}}  {text}' for name,text in said.items()), sep='\n')

if __name__=='__main__': main()
