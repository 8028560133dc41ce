"""Environments: what is locked, how it is installed, its image, and its identity."""
