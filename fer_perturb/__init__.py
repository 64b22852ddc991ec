__version__ = "0.1.0"

import warnings

# fastai compiles a function with it when it is imported; nobody who uses this package can do anything about that
warnings.filterwarnings('ignore', '`torch.jit.script` is deprecated', FutureWarning)
