"""Which tensor stands in which file, and the side files around them."""

import json

import requant.checkpoint.checkpoint as files
from requant.checkpoint.checkpoint import Checkpoint
from requant.passes.context import EXTRAS, MAIN, Aim

NOT_COPIED = ("config.json", "README.md", files.INDEX)
"""Side files of the base that a built checkpoint has its own of."""


def shards(checkpoint: Checkpoint, context: Aim) -> Checkpoint:
    """Spread the main tensors over the recipe's number of files, in order, in equal shares of bytes."""
    main = files.spread(checkpoint.shards[MAIN], files.shard_names(context.shards))
    extras = {EXTRAS: held} if (held := checkpoint.shards.get(EXTRAS)) else {}
    return Checkpoint({**main, **extras}, checkpoint.files)


def side_files(checkpoint: Checkpoint, context: Aim) -> Checkpoint:
    """Add the base's tokenizer, template, processor and licence files byte for byte (defect D21).

    `processor_config.json`, which newer transformers read, is added from the base's two preprocessor files.
    """
    copied = {name: content for name, content in context.base.files.items() if name not in NOT_COPIED}
    if name := context.target.table.processor:
        processor = {
            "image_processor": json.loads(context.base.file("preprocessor_config.json")),
            "processor_class": name,
            "video_processor": json.loads(context.base.file("video_preprocessor_config.json")),
        }
        copied["processor_config.json"] = files.json_file(processor)
    return Checkpoint(checkpoint.shards, {**checkpoint.files, **copied})


def index(checkpoint: Checkpoint, context: Aim) -> Checkpoint:
    """Add `model.safetensors.index.json`, which names every tensor once and sums their bytes (defect D22)."""
    del context
    return Checkpoint(checkpoint.shards, {**checkpoint.files, files.INDEX: files.index(checkpoint.shards)})
