"""Where trials run: the Ray cluster, its slots, the code it is sent."""
