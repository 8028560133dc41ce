"""A base whose output head is its embeddings, and which stores it a second time: transformers writes it once."""

from collections.abc import Iterable

from requant.check.findings import Finding
from requant.check.reader import Reader
from requant.check.side_files import Side

HEAD, EMBEDDINGS = "lm_head.weight", "embed_tokens.weight"
AT_ONCE = 1 << 22


def needed(findings: Iterable[Finding], base: Reader, ours: Side) -> list[Finding]:
    """Return findings without the one that a checkpoint lacks the output head, where the base's is its embeddings.

    Its configuration says so, and the two are the same bytes.
    """
    return [each for each in findings if each.kind != "not in the checkpoint" or not _is_tied(each.tensor, base, ours)]


def _is_tied(head: str, base: Reader, ours: Side) -> bool:
    others = [name for name in base.tensors if name.endswith(EMBEDDINGS)]
    if not head.endswith(HEAD) or len(others) != 1 or base.tensors[head].spec != base.tensors[others[0]].spec:
        return False
    config = ours.config() or {}
    text = config.get("text_config")
    said = {**(text if isinstance(text, dict) else {}), **config}.get("tie_word_embeddings")
    return said is True and _alike(base, head, others[0])


def _alike(base: Reader, one: str, other: str) -> bool:
    buffers = bytearray(AT_ONCE), bytearray(AT_ONCE)
    size = base.tensors[one].spec.nbytes
    for start in range(0, size, AT_ONCE):
        parts = [memoryview(buffer)[: min(AT_ONCE, size - start)] for buffer in buffers]
        for name, part in zip((one, other), parts, strict=True):
            base.read(base.tensors[name], start, part)
        if parts[0] != parts[1]:
            return False
    return True
