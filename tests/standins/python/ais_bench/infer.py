"""The module that tells the tool from others of its name."""
