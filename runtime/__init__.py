"""The process and not the maths: configuration, files, checkpoints, randomness, logs, signals.
Imports nothing of ours."""
