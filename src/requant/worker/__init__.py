"""The worker: tunes a model with AutoRound, deterministically, and keeps a journal of it.

It runs in its own process, in a locked environment, without network. It is told what to do by one file and
answers in files: AutoRound's raw output, the journal, and `worker.json` on where and how fast it ran. It shares
with the host only modules that need nothing but Python. Nobody imports it.
"""
