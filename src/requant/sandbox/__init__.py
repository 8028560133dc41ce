"""Workers: how the quantizer is started, here or in a container."""
