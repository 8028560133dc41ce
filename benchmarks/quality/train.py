"""Trains the model of the experiment: Qwen3.5-MoE's architecture, MTP block and all, in 2.3 million weights.

`python train.py TEXT FOLDER STEPS`, in the locked environment `cpu` with requant's sources on the path. The same steps
are the same bits: the caps, the one thread and the strictness of the worker, float32, batches from a seed, and first
weights that are the tiny models' numbers, made from names. The weights are stored in bfloat16, as a base has them.

The loss is that of the next token, that of the MTP block, which is given what it is given in service
(`requant.worker.mtp`), and a little of what keeps experts in use (Fedus et al., Switch Transformers, 2021, eq. 4).
"""

import json
import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from requant.checkpoint.checkpoint import Checkpoint, Held, Tensor, write_checkpoint
from requant.checkpoint.safetensors import Spec
from requant.model.tiny import stand_in
from requant.mtp_blocks import MTP_BLOCKS
from requant.worker import determinism, mtp

CONFIG = Path(__file__).parent / "base" / "config.json"
"""Of the model that is committed, which one trained anew replaces."""
SEED = 1
BATCH, LENGTH = 4, 256
RATE, WARMUP, DECAY = 4e-3, 40, 0.05
MTP_SHARE, BALANCE_SHARE = 0.5, 0.01
README = b"Trained by benchmarks/quality/train.py of requant, on docstrings, for experiments on quantization.\n"


def specs(model: Any) -> dict[str, Spec]:
    """Return the tensors of the base, those of its MTP block among them."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    config, block = model.config.text_config, MTP_BLOCKS[model.config.model_type]
    like = f"model.language_model.layers.{config.layer_types.index('full_attention')}."
    width = config.hidden_size
    own: dict[str, tuple[int, ...]] = {f"{block.named(block.joint)}.weight": (width, 2 * width)}
    own |= {f"{block.named(each)}.weight": (width,) for each in (block.norm, *block.halves.values())}
    own |= {
        f"{block.block}.{name.removeprefix(like)}": shape for name, shape in shapes.items() if name.startswith(like)
    }
    return {name: Spec("BF16", shape) for name, shape in (shapes | own).items()}


def start(config: dict[str, Any]) -> Checkpoint:
    """Return the untrained model."""
    import torch
    import transformers

    with torch.device("meta"):
        kind = getattr(transformers, config["architectures"][0])
        model = kind(kind.config_class.from_dict(config))
    return stand_in("quality", config, specs(model), zero_centred=True)


def losses(model: Any, tokens: Any) -> tuple[Any, Any, Any]:
    """Return the mean losses of the next token and of the MTP block, and of unevenly used experts."""
    import torch.nn.functional as functional

    decoder, seen, routed = model.get_decoder(), dict[str, Any](), list[Any]()
    last = decoder.layers[-1].register_forward_hook(lambda _, __, put_out: seen.update(put_out=put_out))
    routers = [module for name, module in model.named_modules() if name.endswith("mlp.gate")]
    hooks = [each.register_forward_hook(lambda _, __, made: routed.append(made)) for each in routers]
    hidden = decoder(input_ids=tokens, use_cache=False).last_hidden_state
    drafts = mtp.logits(model, seen["put_out"], tokens)
    for each in (last, *hooks):
        each.remove()
    logits = model.get_output_embeddings()(hidden)
    one = functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    two = functional.cross_entropy(drafts[:, :-1].flatten(0, 1), tokens[:, 2:].flatten())
    uneven = 0
    for chances, _, chosen in routed:
        used = functional.one_hot(chosen, chances.shape[-1]).sum(1).float().mean(0)
        uneven = uneven + (used * chances.mean(0)).sum() * chances.shape[-1] / chosen.shape[-1]
    return one, two, uneven / len(routed)


def batches(text: Path, steps: int) -> Iterator[Any]:
    """Yield batches of tokens [BATCH, LENGTH], drawn from all of the text; a character is a token."""
    import torch

    whole = "".join(json.loads(line)["text"] for line in text.read_text().splitlines())
    ids = torch.tensor(list(whole.encode("ascii")))
    drawn = random.Random(SEED)  # noqa: S311 (no secret)
    for _ in range(steps):
        places = [drawn.randrange(len(ids) - LENGTH) for _ in range(BATCH)]
        yield torch.stack([ids[at : at + LENGTH] for at in places])


def train(model: Any, text: Path, steps: int) -> None:
    """Train all weights but those of the visual tower, which text does not reach."""
    import torch

    weights = {n: w for n, w in model.named_parameters() if not n.startswith("model.visual.")}
    model.requires_grad_(False)
    for each in weights.values():
        each.requires_grad_(True)
    groups = [
        {"params": [w for w in weights.values() if w.ndim > 1], "weight_decay": DECAY},
        {"params": [w for w in weights.values() if w.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), foreach=False)
    for step, tokens in enumerate(batches(text, steps)):
        done = step / steps
        rate = RATE * min((step + 1) / WARMUP, 0.05 + 0.95 * (1 + math.cos(math.pi * done)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        one, two, uneven = losses(model, tokens)
        optimizer.zero_grad()
        (one + MTP_SHARE * two + BALANCE_SHARE * uneven).backward()
        torch.nn.utils.clip_grad_norm_(list(weights.values()), 1.0, foreach=False)
        optimizer.step()
        if not torch.isfinite(one + two):
            raise ArithmeticError(f"step {step}: the loss is {one} and {two}")
        if step % 20 == 0 or step == steps - 1:
            print(f"{step} {one:.4f} {two:.4f} {uneven:.3f}", flush=True)


def stored(model: Any, begun: Checkpoint) -> Checkpoint:
    """Return the trained model as a checkpoint, each weight rounded to the nearest bfloat16."""
    import torch

    trained = model.state_dict()

    def tensor(name: str, spec: Spec) -> Tensor:
        bits = trained[name].detach().to(torch.bfloat16).contiguous().view(torch.int16)
        return Tensor(spec, Held(bits.numpy().astype("<i2").tobytes()))

    shards = {
        file: {name: tensor(name, each.spec) for name, each in held.items()} for file, held in begun.shards.items()
    }
    return Checkpoint(shards, {**begun.files, "README.md": Held(README)})


def main(text: Path, folder: Path, steps: int) -> None:
    """Write the untrained model into `folder/start` and the trained one into `folder/base`."""
    determinism.prepare("cpu", capped=False)  # the caps take twice as long, and the weights are committed
    determinism.enforce()
    import torch

    from requant.worker.autoround import tuning

    begun = start(json.loads(CONFIG.read_text()))
    write_checkpoint(begun, folder / "start")
    model = tuning.load_model(folder / "start", torch.float32)
    model.config._experts_implementation = "eager"  # a loop over experts, in a fixed order
    mtp.attach(model, folder / "start")
    train(model, text, steps)
    write_checkpoint(stored(model, begun), folder / "base")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
