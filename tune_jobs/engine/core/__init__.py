"""Definitions that all rooms share; imports no other room."""
