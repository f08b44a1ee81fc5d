from .results import advise as advise
