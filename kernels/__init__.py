"""Fused operations of a UNet. reference.py says what each computes and runs everywhere; dispatch.py
picks."""
