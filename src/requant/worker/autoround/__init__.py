"""AutoRound 0.12, as the worker calls it and listens to it."""
