"""Ordinary Lightning modules and data modules; they know nothing of Ray or of `tune_jobs`."""
