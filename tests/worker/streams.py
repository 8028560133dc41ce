"""What hashing streams once is worth: the same digests as hashed anew, and no change in between that is overlooked."""

from collections.abc import Callable
from typing import Any, Self

import torch
from tests.worker.prepared import answer

from requant.errors import BuildError
from requant.worker import resume as resume_state
from requant.worker.resume import BlockInputs, Hashed, digest, digest_of_nest

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def streams() -> dict[str, Any]:
    return {
        "equal": [reused(dtype) for dtype in DTYPES],
        "noticed": {name: noticed(change) for name, change in CHANGES.items()},
        "forgotten": forgotten(),
        "one stream": one_stream(),
        "nests": nests(),
    }


def stream(dtype: Any = torch.float32) -> list[Any]:
    generator = torch.Generator().manual_seed(7)
    return [torch.rand(1, 16, 8, generator=generator).to(dtype) for _ in range(3)]


class Counted:
    """Counts how often a stream is hashed, while it stands for `digest`."""

    def __init__(self) -> None:
        self.times = 0

    def __enter__(self) -> Self:
        resume_state.digest = self
        return self

    def __exit__(self, *_: object) -> None:
        resume_state.digest = digest

    def __call__(self, tensors: Any) -> str:
        self.times += 1
        return digest(tensors)


def reused(dtype: Any) -> dict[str, Any]:
    """Hash what a block puts out, then the same as what the next one is given."""
    hashed, full, quantized = Hashed(), stream(dtype), stream(dtype)[::-1]
    with Counted() as counted:
        out = BlockInputs.of(full, quantized, None, hashed).digests
        given = BlockInputs.of(full, quantized, None, hashed).digests
    return {"hashed": counted.times, "equal": out == given == {"full": digest(full), "quantized": digest(quantized)}}


def noticed(change: Callable[[list[Any]], list[Any]]) -> bool:
    """Change a stream after it was hashed; answer whether it gets the digest that it has now, and another one."""
    hashed, given = Hashed(), stream()
    before = hashed(given)
    given = change(given)
    found: str = hashed(given)
    return found == digest(given) != before


def edited(write: Callable[[list[Any]], object]) -> Callable[[list[Any]], list[Any]]:
    def change(given: list[Any]) -> list[Any]:
        write(given)
        return given

    return change


def exchange(given: list[Any]) -> None:
    """Exchange two numbers of a tensor, past torch's count of writes."""
    flat = given[2].numpy().reshape(-1)
    flat[[3, 90]] = flat[[90, 3]]


def put(given: list[Any]) -> None:
    given[1] = torch.rand(1, 16, 8)


def flip(given: list[Any]) -> None:
    given[0].view(torch.int32).numpy().reshape(-1)[127] ^= -(1 << 31)


CHANGES: dict[str, Callable[[list[Any]], list[Any]]] = {
    "a write": edited(lambda given: given[0].add_(1)),
    "a write to its data": edited(lambda given: given[1].data.mul_(1.0000002)),
    "one bit, by numpy": edited(flip),
    "two numbers exchanged": edited(exchange),
    "another tensor in its place": edited(put),
    "two tensors exchanged": edited(lambda given: given.reverse()),
    "one less": edited(lambda given: given.pop()),
    "another stream": lambda given: [each + 1 for each in given],
}


def forgotten() -> int:
    """Answer how often a stream is hashed that was forgotten in between."""
    hashed, given = Hashed(), stream()
    with Counted() as counted:
        hashed(given)
        hashed.forget()
        hashed(given)
    return counted.times


def one_stream() -> bool:
    digests = BlockInputs.of(stream(), None, None, Hashed()).digests
    return digests["full"] == digests["quantized"] == digest(stream())


def nests() -> dict[str, Any]:
    """Answer how many digests there are of values that all differ, and of those that are equal; and what has none."""
    tensor = torch.arange(6, dtype=torch.int32)
    base = {"position_embeddings": [tensor, tensor], "attention_mask": None, "use_cache": False, "scale": 0.5}
    others = [
        base,
        {**base, "attention_mask": torch.ones(1)},
        {**base, "attention_mask": False},
        {**base, "use_cache": True},
        {**base, "use_cache": "False"},
        {**base, "scale": 0.25},
        {**base, "position_embeddings": [tensor, tensor + 1]},
        {**base, "position_embeddings": [tensor]},
        {**base, "position_embeddings": tensor},
        {**base, "position_embeddings": [tensor, tensor.reshape(2, 3)]},
        {**base, "position_embeddings": [tensor, tensor.view(torch.float32)]},
        {**base, "position_ids": tensor},
        {"position_embeddings": [tensor, tensor]},
    ]
    turned = {name: base[name] for name in reversed(base)}
    try:
        digest_of_nest({"cache": object()})
        refused = ""
    except BuildError as error:
        refused = str(error)
    return {
        "different": len({digest_of_nest(each) for each in others}) == len(others),
        "equal": digest_of_nest(turned) == digest_of_nest(base) == digest_of_nest({**base, "scale": 0.5}),
        "refused": refused,
    }


if __name__ == "__main__":
    answer(streams)
