"""The tables of papers, one command each: python ablation.py. A table is a file of conf/ablation;
here is what trains, evaluates, judges and prints it."""
