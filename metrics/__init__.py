"""Metrics: pure functions of feature matrices [N, D] and of a network's errors, in float64, with
their intervals."""
