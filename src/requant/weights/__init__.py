"""Every weight of a checkpoint against its base."""
