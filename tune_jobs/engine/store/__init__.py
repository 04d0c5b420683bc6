"""The sweep on disk, the one authority for what has happened."""
