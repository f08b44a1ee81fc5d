from .conversion import Conversion as Conversion
from .conversion import convert as convert
from .prepare import ModelSpec as ModelSpec
from .prepare import export_model as export_model
from .prepare import prepare_model as prepare_model
