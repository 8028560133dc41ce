"""What headers and side files tell of a checkpoint, and how it is mended."""
