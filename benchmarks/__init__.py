"""Benchmarks: speed, accuracy and cost of sweeps, GPU shares, and searches in simulated time."""
