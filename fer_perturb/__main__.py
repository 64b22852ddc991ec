"`python -m fer_perturb`, the same as `fer-perturb`"
# Written by hand: in a notebook, whose cells run as `__main__`, this would start the command.
import sys

from fer_perturb.cli import main

if __name__=='__main__': sys.exit(main())
