"""Two of a kind, side by side."""
