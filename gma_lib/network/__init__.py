"""GMA itself: the model, its weights, its deploy form and the memory that it needs."""
