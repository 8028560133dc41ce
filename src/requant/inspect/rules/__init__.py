"""The static rules: each takes what was seen and yields findings. None reads a file."""
