"""Reproducible builds of quantized checkpoints, and proofs about published ones.

The map. Every verb is a module of its name, what they share is a package, and what all of them speak of is a file or a
value. Which may import which, floor by floor, stands in `pyproject.toml`.

making               build, trial, rebuild, plan, survey, lock, image, pins, update, render
telling              inspect, identify, repair, card, show
judging              verify, check, diff, audit, coverage
what they share      building, rooms, images, network, pinning, inspecting, weights, comparing, retuning
models of others     model, loaders, passes, twin, base_config, inventory, packing
files and values     recipe, environment, installation, packages, wheels, journal, manifest, checkpoint,
                     safetensors, attestation, verdict, files, loadable, digest, syntax, programs, errors, crash,
                     progress
the command line     cli

quantizer            the room: the only place that knows torch; nobody imports it

Every noun is a file that can be held, every verb a command that can be typed: docs/README.md.
"""
