"""The words that all rooms share; imports no other room."""
