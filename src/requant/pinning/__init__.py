"""What a file has from elsewhere."""
