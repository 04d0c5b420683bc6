"""Sweeps: Optuna searches, Ray runs the trials, ASHA stops the poor ones, Lightning trains."""
