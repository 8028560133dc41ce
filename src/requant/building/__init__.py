"""What a build needs before and around its room."""
