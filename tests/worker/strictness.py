"""`BASE`: what the worker's module `determinism` does, and what it refuses."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tests.worker.prepared import ROOT, answer

from requant.errors import BuildError
from requant.recipe import read_recipe
from requant.worker import determinism
from requant.worker.autoround import calibration, tuning


def refusal(action: Callable[[], Any]) -> str:
    """Return what the BuildError of an action says, or nothing where it raises none."""
    try:
        action()
    except BuildError as error:
        return str(error)
    return ""


def sums() -> dict[str, Any]:
    """Compare the sum in fixed order with one in float64, along three axes of lengths around powers of two."""
    generator = torch.Generator().manual_seed(1)
    excess, whole = 0.0, True
    for length in (1, 2, 3, 63, 64, 65, 100, 1000):
        for dim in (0, 1, -1):
            shape = [3, 4, 5]
            shape[dim] = length
            values = torch.randn(shape, generator=generator)
            exact = values.double().cumsum(dim)
            # Each sum is a tree of at most ceil(log2(length)) additions deep.
            depth = (length - 1).bit_length()
            bound = depth * 2.0**-24 / (1 - depth * 2.0**-24) * values.double().abs().cumsum(dim)
            error = (determinism.fixed_order_cumsum(values, dim).double() - exact).abs()
            excess = max(excess, (error / bound.clamp_min(1e-300)).nan_to_num().max().item())
            # Below 2**24 every partial sum of whole numbers is a float32.
            numbers = torch.randint(-9, 10, shape, generator=generator)
            found = determinism.fixed_order_cumsum(numbers.float(), dim)
            whole = whole and bool((found == numbers.cumsum(dim)).all())
    values = torch.randn(3, 7, dtype=torch.float64, generator=generator, requires_grad=True)
    half = torch.ones(4, 4, dtype=torch.bfloat16)
    return {
        "error_in_bounds": excess,
        "whole_numbers_exact": whole,
        "gradient": all(
            torch.autograd.gradcheck(lambda each, dim=dim: determinism.fixed_order_cumsum(each, dim), (values,))
            for dim in (0, 1)
        ),
        "keeps_dtype": str(determinism.fixed_order_cumsum(half, 0).dtype),
    }


def strictness(base: str) -> dict[str, Any]:
    determinism.enforce()
    calls = [torch.ones(3).cumsum(0), torch.ones(3).cumsum(dim=0), torch.arange(3).cumsum(0)]
    recipe = read_recipe(ROOT / "builds" / "ec")
    effort = recipe.effort(tiny=True)
    model, tokenizer = tuning.load(Path(base))
    batches = calibration.Tokens([torch.zeros(64, dtype=torch.int64)] * 8).batches(8)
    autoround = tuning.tuner(model, tokenizer, batches, recipe, effort)

    def confirm(precision: str = effort.precision) -> str:
        return refusal(lambda: determinism.confirm(autoround, "cpu", precision))

    result = {"sums": sums(), "replaced": [each.tolist() for each in calls], "strict": confirm()}
    result["precision"] = confirm("bfloat16")
    torch.use_deterministic_algorithms(False)
    result["off"] = confirm()
    determinism.enforce()

    import auto_round

    def relaxed(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **{**kwargs, "enable_deterministic_algorithms": False})

    original, auto_round.AutoRound = auto_round.AutoRound, relaxed
    autoround = tuning.tuner(model, tokenizer, batches, recipe, replace(effort))
    result["relaxed"] = confirm()
    return result


if __name__ == "__main__":
    answer(strictness)
