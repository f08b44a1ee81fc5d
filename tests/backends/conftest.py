"""The stand-ins for the Ascend tools, for every test here."""

from ascend_tools import folders, models, om, standins

__all__ = ["folders", "models", "om", "standins"]
