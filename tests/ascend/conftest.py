"""The stand-ins for the Ascend tools, for every test here."""

from ascend_tools import exported, folders, models, om, standins

__all__ = ["exported", "folders", "models", "om", "standins"]
