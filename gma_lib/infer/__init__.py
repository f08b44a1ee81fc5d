"""Stage 04: frames to flow."""
