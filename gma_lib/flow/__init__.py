"""Optical flow as arrays and as files: reading, writing, colours, metrics, classical methods."""
