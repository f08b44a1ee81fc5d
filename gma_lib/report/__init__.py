"""Figures, pages and the index that people read."""
