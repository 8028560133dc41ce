"""The model as values: what its config.json says, and a tiny model derived from it."""
