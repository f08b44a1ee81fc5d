from .figures import draw_flow as draw_flow
from .figures import save_figure as save_figure
from .index import is_current as is_current
from .index import write_index as write_index
