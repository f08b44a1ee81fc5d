"""A stand-in for auto_optimizer; see ``__main__``."""
