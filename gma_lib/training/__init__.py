"""From procedural scenes to weights."""
