"""Whole-process measurements: how fast a sweep is, and what a GPU's shares do."""
