"""Judging a model: metrics on feature matrices, their intervals, memorization, forgetting. Metrics
compute in float64."""
