from .progress import show_messages as show_messages
