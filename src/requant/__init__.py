"""Reproducible builds of quantized checkpoints, and proofs about published ones."""
