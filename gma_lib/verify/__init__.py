"""Check a run's numbers against expected ones, each with its tolerance."""
