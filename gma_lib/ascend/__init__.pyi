from . import chip as chip
from . import operators as operators
from . import toolkit as toolkit
