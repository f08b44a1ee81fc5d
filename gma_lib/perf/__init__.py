"""Stage 06: time and memory."""
