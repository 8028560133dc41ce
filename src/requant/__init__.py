"""requant."""
