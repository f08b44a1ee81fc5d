from .summary import advise as advise
