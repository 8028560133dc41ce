"""What is published of a build: a checkpoint on the Hub with its proofs beside it, sent, fetched and judged by name."""
