"""`TEXTS FOLDER…`: the log likelihood that lm-evaluation-harness gives each text but for its first letter, by model.

It is asked by its public API, which is on the path, with models and tokenizers of local folders.
"""

import json
from pathlib import Path
from typing import Any

from tests.worker.prepared import answer


def harness(texts: str, *folders: str) -> dict[str, Any]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    asked = json.loads(Path(texts).read_text())
    found = []
    for folder in folders:
        model = HFLM(pretrained=folder, dtype="float32", device="cpu", batch_size=1)
        requests = [
            Instance(request_type="loglikelihood", doc={}, arguments=(each[:1], each[1:]), idx=number)
            for number, each in enumerate(asked)
        ]
        found.append([likelihood for likelihood, _ in model.loglikelihood(requests)])
    return {"likelihoods": found}


if __name__ == "__main__":
    answer(harness)
