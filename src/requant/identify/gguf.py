"""What a GGUF file shows of who wrote it: types of blocks, and key-values that one tool writes."""

from collections import Counter
from pathlib import Path

from requant.check.gguf import Types, files_of
from requant.check.reader import Reader
from requant.checkpoint.gguf import read_gguf
from requant.formats.codec import FLOATS
from requant.identify import Fingerprint

IMATRIX = "quantize.imatrix.file"
"""The key in which llama.cpp's `llama-quantize` names an importance matrix that it was given."""


def identify_gguf(checkpoint: Reader) -> Fingerprint:
    """Read a fingerprint from the headers of a model in GGUF files; raise CheckpointError where one cannot be read."""
    path = Path(checkpoint.name)
    folder = path if path.is_dir() else path.parent
    values = read_gguf(folder / files_of(path)[0]).values
    codecs = checkpoint.declaration.codecs if isinstance(checkpoint.declaration, Types) else {}
    stored = dict(Counter(codec.name for codec in codecs.values() if codec.type not in FLOATS))
    named = f"llama.cpp, with an importance matrix: {IMATRIX} {values.get(IMATRIX)!r:.80}"
    return Fingerprint(
        architecture=str(values.get("general.architecture", "")),
        quantized=bool(stored),
        declared=bool(stored),
        method="GGUF",
        tools=(named,) if IMATRIX in values else (),
        formats=stored,
        unknown=dict(Counter(why for _, why in checkpoint.beyond)),
        mtp=None,
        zero_words=None,
        negative_tuned=None,
        negative_rounded=None,
        main_bytes=sum(place.stop - place.start for place in checkpoint.tensors.values()),
        extra_bytes=0,
        policies=None,
        tokenizer="in the GGUF file, and not read",
        declared_version="",
        declared_effort={},
        tensors={"all": len(checkpoint.tensors)},
        quantized_layers=sum(stored.values()),
        linear_layers=None,
        writers=None,
        unmodelled="",
    )
