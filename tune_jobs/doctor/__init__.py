"""`tune-jobs doctor`: what is wrong with a cluster file; imports neither the engine nor Ray."""
