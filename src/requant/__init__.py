"""Reproducible builds of quantized checkpoints, and proofs about published ones.

The map, from the top floor down:

cli                                        parses, calls one verb, prints its result, returns its status
tables                                     results for a terminal
build, lock, plan, repair, remote, card    verbs; checkpoints on the Hub by their headers; a card's claims
identify, inspect, mending                 what the files tell, and what they should have been
preflight                                  what a full build needs, and what it costs
rules, anatomy, baseline                   what a checkpoint is made of, and what is wrong with it
loaders, findings                          vLLM, SGLang and transformers as data; what was found, as data
runner, passes, attestation, fetch, twin   the room and what surrounds it
verify, download                           are these the recorded bytes?; one file from the Hub
verdict, manifest, inventory, packing      comparisons as data; what a checkpoint is; every tensor, from config alone
headers                                    a checkpoint without its weights
recipe, environment, pins, checkpoint, journal   what a person asks for, and files on disk
safetensors                                one file format
digest, errors, defects                    the ground; the catalogue of defects

quantizer/                                 the room: the only place that knows torch; nobody imports it

Every noun is a file that can be held, every verb a command that can be typed: docs/README.md.
"""
