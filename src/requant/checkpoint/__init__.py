"""Checkpoints: safetensors files, which files count, manifests, what loaders open."""
