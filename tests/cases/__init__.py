"""Broken tiny models, each made from a healthy one by a named mutation and never stored. `CASES` lists them by rule."""
