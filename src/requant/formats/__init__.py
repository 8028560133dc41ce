"""Formats: how codes, scales and zero points lie in files, one module each."""
