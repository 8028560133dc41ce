"""`FILE NAME FOLDER`: write what transformers saves of a class of FILE, as small as it says there."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tests.worker.prepared import answer

COMMON = {"hidden_size": 256, "vocab_size": 320, "max_position_embeddings": 512, "tie_word_embeddings": False}
IDS = {"bos_token_id": 256, "eos_token_id": 258, "pad_token_id": 256}


def saved(file: str, name: str, folder: str) -> dict[str, Any]:
    asked = json.loads(Path(file).read_text())[name]
    kind = getattr(transformers, asked["class"])
    common = {} if "text_config" in asked["config"] else COMMON | IDS
    config = kind.config_class(**{**common, **asked["config"]})
    torch.set_default_dtype(torch.bfloat16)
    kind(config).save_pretrained(folder)
    return {}


if __name__ == "__main__":
    answer(saved)
