"""Evidence: journals and statements."""
