"""Models that travel: one file with all that prediction needs, and nothing of patients or of the training."""
