"""What moves from a source to a target: which weights are copied and fitted, and which of them
train when.

A strategy is a YAML file, conf/transfer/NAME.yaml, made of what is here (docs/extending.md).
"""
