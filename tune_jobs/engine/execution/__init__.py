"""Drives Ray Tune's controller through a sweep."""
