"""Asks what the quantizer does with a model: which layers it packs, and where in the base the weight of each lies.

Nothing is guessed from names. The layers and their schemes are read off AutoRound where it would begin to tune. The
sources come from a second model that is loaded and unfused by the very code of the first, from a base whose numbers are
counted through: what a layer then holds says where it came from. float64 counts exactly up to 2^53.
"""

import json
from bisect import bisect_right
from math import prod
from pathlib import Path
from typing import Any

from requant.errors import BuildError
from requant.worker.autoround import retune, tuning

MAX_NUMBERS = 1 << 27
"""Numbers of the largest base that is counted through, 1 GiB: a tiny model has its architecture."""

Shapes = dict[str, tuple[int, ...]]


def ask(autoround: Any, base: Path, folder: Path) -> None:
    """Write `survey.json`: blocks in the order of tuning; of each linear layer [out, in] in them bits and source.

    A source is a tensor of the base and three counts of numbers: where in it the layer's first one lies, and how far on
    the next row and the next column are. It is null where the layer's weight is no such part of one tensor.
    """
    asked: dict[str, Any] = {}

    def blocks(self: Any, model: Any, *_: Any, **__: Any) -> None:
        asked["blocks"] = [list(names) for names in self.quant_block_list]
        asked["layers"] = {
            name: {"shape": list(model.get_submodule(name).weight.shape), "bits": int(scheme.get("bits") or 16)}
            for name, scheme in self.layer_config.items()
            if hasattr(model.get_submodule(name), "weight")
        }

    retune.through(autoround, blocks, folder)
    found = sources(base, shapes_of(base), folder / "counted")
    for name, layer in asked["layers"].items():
        layer["source"] = found.get(name)
    (folder / "survey.json").write_text(json.dumps(asked))


def shapes_of(base: Path) -> Shapes:
    """Return the shapes of a base's tensors, by its files in order of name."""
    from safetensors import safe_open

    shapes: Shapes = {}
    for path in sorted(base.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no dict)
    return shapes


def sources(base: Path, shapes: Shapes, folder: Path) -> dict[str, dict[str, Any] | None]:
    """Return where the weight of every linear layer lies among tensors of these shapes; `folder` is made for it.

    Raises BuildError for a base of more than `MAX_NUMBERS`.
    """
    import torch

    if (numbers := sum(map(prod, shapes.values()))) > MAX_NUMBERS:
        raise BuildError(
            f"{base}: has {numbers:,} numbers, {MAX_NUMBERS:,} at most are counted through", "Ask its tiny model."
        )
    begins = _write_counted(base, shapes, folder)
    model = tuning.load_model(folder, torch.float64)
    _unfuse(model)
    starts = [start for start, _ in begins]
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            first = int(module.weight[0, 0])
            start, tensor = begins[bisect_right(starts, first) - 1]
            found[name] = _part(module.weight.detach(), tensor, first - start)
    return found


def _write_counted(base: Path, shapes: Shapes, folder: Path) -> list[tuple[int, str]]:
    """Write a base of these shapes whose numbers count on from tensor to tensor; return where each begins."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    for path in base.glob("*.json"):
        if not path.name.endswith(".index.json"):
            (folder / path.name).write_bytes(path.read_bytes())
    start, begins, tensors = 0, [], {}
    for name, shape in shapes.items():
        begins.append((start, name))
        tensors[name] = torch.arange(start, start := start + prod(shape), dtype=torch.float64).reshape(shape)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return begins


def _unfuse(model: Any) -> None:
    from auto_round.modeling.fused_moe.replace_modules import apply_replacements, materialize_model_

    apply_replacements(model)
    materialize_model_(model)


def _part(weight: Any, tensor: str, first: int) -> dict[str, Any] | None:
    import torch

    rows, columns = weight.shape
    row = int(weight[min(1, rows - 1), 0] - weight[0, 0])
    column = int(weight[0, min(1, columns - 1)] - weight[0, 0])
    if not torch.equal(weight, weight[0, 0] + torch.arange(rows)[:, None] * row + torch.arange(columns) * column):
        return None
    return {"tensor": tensor, "first": first, "row": row, "column": column}
