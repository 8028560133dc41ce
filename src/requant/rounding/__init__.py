"""Roundings: formulas from weight to code, and the bound that tuning cannot leave."""
