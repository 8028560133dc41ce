"""Reproducible builds of quantized checkpoints, and proofs about published ones.

The map, by what a module is about. Every verb is a module of its name; which may import which, floor by floor, stands
in `pyproject.toml`.

the command line     cli, tables, terminal
making               build, rebuild, plan, workplace, inputs, preflight, passes, attestation, divergence, twin
rooms                rooms, runner, installation, container, here, engine, refusals, programs
images               image, evidence, dockerfile, wheelhouse, archive, rootfs, sbom, debian
tuning again         audit, crew, cluster, worker, retuned, apart, audits, challenge, coverage, show
against the base     check, checked, examine, packed, source, lineage, reach, rounding, kernels, ledger, tally
by their headers     inspect, identify, repair, mending, card, rules, anatomy, baseline, loaders, findings, defects,
                     headers, remote, hub
comparing            verify, diff, difference, surroundings, verdict
what is pinned       pinned, update, lock, environment, pins, reference, hosted, fetch, download, web, render
files and values     recipe, base_config, journal, manifest, checkpoint, inventory, packing, safetensors, files,
                     digest, errors, progress

quantizer            the room: the only place that knows torch; nobody imports it

Every noun is a file that can be held, every verb a command that can be typed: docs/README.md.
"""
