"""What moves from a source to a target: which weights are copied and fitted, and which of them
train when."""
