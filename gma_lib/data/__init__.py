"""Stage 01: frames and ground truth, from Sintel, clips or the rendered demo set."""
