"""Files from elsewhere, by their digests."""
