from .infer.estimator import load as load

__version__: str
