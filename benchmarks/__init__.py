"""One command each: python -m benchmarks.NAME. Each prints a table last and can write a CSV with
machine and versions."""
