"""Container images: how they are asked for, built and read."""
