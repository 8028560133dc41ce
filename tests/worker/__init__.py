"""Programs for the worker's Python, each printing one JSON document: run by tests/test_worker.py, they hold no tests.

This file runs before each of them, and sets what must be set before torch is imported.
"""

from requant.worker import determinism

determinism.prepare("cpu")
