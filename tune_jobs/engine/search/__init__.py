"""Decides what is tried next, and which trials continue."""
