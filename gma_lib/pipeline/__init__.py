"""The stages, their parameters, and the runner that executes their notebooks."""
