"""Tuning blocks again: who does it, what they found, and how it is kept."""
