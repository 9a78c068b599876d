"""Studies: many runs with one question, launched in rounds by train.py -m, and their answer."""
