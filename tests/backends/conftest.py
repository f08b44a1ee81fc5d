"""The stand-ins for the Ascend tools, for every test here."""

from ascend_tools import converted, folders, models, om, standins

__all__ = ["converted", "folders", "models", "om", "standins"]
