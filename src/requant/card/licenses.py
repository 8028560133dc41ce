"""Licences that are known by the SHA-256 of their text. Of any other text a card gives the digest and no name."""

LICENSES = {
    "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30": "apache-2.0",
    # The same text without its last line end, its copyright line filled in: tests/test_card.py makes both.
    "832dd9e00a68dd83b3c3fb9f5588dad7dcf337a0db50f7d9483f310cd292e92e": "apache-2.0",  # 2024 Alibaba Cloud
    "50cbab8a892c5f2993b8c7351a99182507472def3b1374558308605d99b86b32": "apache-2.0",  # 2026 Alibaba Cloud
}
"""The Hub's name of a licence, by digest."""
FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md")
