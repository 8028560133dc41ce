"""What the heads of models are given, as `head` makes it of what their last blocks put out, beside what runs of the
whole models give them. Blocks of a Llama return a tensor; of a Falcon and of a GPT-J, a tuple."""

from types import SimpleNamespace
from typing import Any

import torch
import transformers
from tests.worker.prepared import answer

from requant.errors import BuildError
from requant.worker.autoround import head

SAMPLES, BATCH, TOKENS, WIDTH = 5, 2, 7, 32
COMMON = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
CONFIGS = {
    "llama": (COMMON | {"intermediate_size": 48}, "model.layers"),
    "falcon": (COMMON, "transformer.h"),
    "gptj": ({"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "vocab_size": 64}, "transformer.h"),
}


def given() -> dict[str, Any]:
    return {name: of_one(name) for name in CONFIGS}


def of_one(name: str) -> dict[str, Any]:
    """Answer whether blocks return a tuple, whether inputs are equal, and what is said of a layer that is not run."""
    torch.manual_seed(7)
    values, blocks = CONFIGS[name]
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(name, **values)).eval()
    for place, module in model.named_modules():
        module.global_name = place
    rows = torch.randint(0, 64, (SAMPLES, TOKENS))
    batches = [{"input_ids": each, "attention_mask": torch.ones_like(each)} for each in rows.split(BATCH)]
    put_out: list[Any] = []
    full = run(model, batches, model.get_submodule(f"{blocks}.1"), put_out)
    autoround = SimpleNamespace(model=model, quant_block_list=[[f"{blocks}.0", f"{blocks}.1", "lm_head"]])
    stream = [each for output in put_out for each in (output[0] if isinstance(output, tuple) else output).split(1)]
    found = head.given(autoround, model.lm_head, stream, batches)
    model.unused = torch.nn.Linear(WIDTH, WIDTH)
    model.unused.global_name = "unused"
    try:
        head.given(autoround, model.unused, stream, batches)
        refused = ""
    except BuildError as error:
        refused = str(error)
    return {
        "a tuple": isinstance(put_out[0], tuple),
        "equal": len(found) == SAMPLES and all(map(torch.equal, found, full)),
        "as before": all(map(torch.equal, run(model, batches, model.lm_head, []), full)),
        "refused": refused,
    }


def run(model: Any, batches: list[dict[str, Any]], block: Any, put_out: list[Any]) -> list[Any]:
    """Run the model; return what its head is given, and keep what a block puts out."""
    found: list[Any] = []
    hooks = [
        model.lm_head.register_forward_pre_hook(lambda _, inputs: found.extend(inputs[0].split(1))),
        block.register_forward_hook(lambda _, __, output: put_out.append(output)),
    ]
    with torch.no_grad():
        for batch in batches:
            model(**batch, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


if __name__ == "__main__":
    answer(given)
