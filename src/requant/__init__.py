"""Reproducible builds of quantized checkpoints, and proofs about published ones.

The map, from the top floor down:

cli                                        parses, calls one verb, prints its result, returns its status
tables, terminal                           results for a person, and how they reach one
build, check, diff, lock, plan, repair     verbs
remote, card                               checkpoints on the Hub by their headers; a card's claims
identify, inspect, mending                 what the files tell, and what they should have been
checked, examine, inputs                   a check's outcome; one window of it; what goes into the room
packed                                     a window of a packed layer
preflight                                  what a full build needs, and what it costs
rules, anatomy, baseline                   what a checkpoint is made of, and what is wrong with it
loaders, findings                          vLLM, SGLang and transformers as data; what was found, as data
runner, passes, attestation, fetch, twin   the room and what surrounds it
verify, download                           are these the recorded bytes?; one file from the Hub
source, hub, lineage, ledger               where tensors are read from and come from; what an interrupted check did
reach, rounding, tally                     what tuning can reach, what rounding gives, and what was found
difference, surroundings                   how two tensors differ, and what stands around them
kernels                                    the inner loops, compiled
verdict, manifest, inventory, packing      comparisons as data; what a checkpoint is; every tensor, from config alone
headers                                    a checkpoint without its weights
recipe, environment, pins, checkpoint, journal   what a person asks for, and files on disk
files, safetensors                         which files are a checkpoint's; one file format
digest, errors, progress, defects          the ground; the catalogue of defects
web                                        how a hub is asked

quantizer/                                 the room: the only place that knows torch; nobody imports it

Every noun is a file that can be held, every verb a command that can be typed: docs/README.md.
"""
