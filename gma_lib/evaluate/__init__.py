"""Stage 05: flow and ground truth to scores."""
