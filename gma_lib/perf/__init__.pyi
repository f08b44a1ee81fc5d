from .summary import advise as advise
from .summary import load_precisions as load_precisions
