"""The model: its plan, its tiny stand-in, and what is known of its architecture."""
