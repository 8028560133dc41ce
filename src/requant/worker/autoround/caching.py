"""What the first block is given is made on one device, or not at all.

At 2dda035 AutoRound makes it with the whole model on the GPU (`try_cache_inter_data_gpucpu`), mapped by 0.9 of the
memory that is free. Where that is too little it leaves layers on the CPU, or catches the end of memory, says "switch to
cpu" in its log and goes on: position embeddings are then computed on a CPU, and the bits of the build are others. At
0.12.2 and 0.16.1 it takes the CPU for this architecture, whatever is free.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from requant.errors import BuildError
from requant.worker.autoround.series import installed

ADVICE = "End what else uses the GPU, and build again: the recipe's hardware.memory_gib must be free."


@contextmanager
def confirmed(autoround: Any) -> Iterator[None]:
    """Raise BuildError where AutoRound, as it makes what the first block is given, does so by what memory is free."""
    making, giving_up = installed().caching(autoround)
    cache = making.function

    def refuse(*_: Any, **__: Any) -> Any:
        raise BuildError(
            f"AutoRound ran out of memory on {autoround.device} while it made what the first block is given, and would "
            "do it again on the CPU: other bits",
            ADVICE,
        )

    def cached(*args: Any, **kwargs: Any) -> Any:
        with giving_up.replaced(refuse):
            made = cache(*args, **kwargs)
        places = {_device(place) for place in getattr(autoround.model, "hf_device_map", {}).values()}
        if places - {_device(autoround.device)}:
            raise BuildError(
                f"AutoRound mapped the model to {', '.join(sorted(places))} while it made what the first block is "
                f"given, expected {_device(autoround.device)} alone",
                ADVICE,
            )
        return made

    with making.replaced(cached):
        yield


def _device(place: Any) -> str:
    """Return a place of accelerate's map, or a device of AutoRound's, by one name: 0, "cuda" and "cuda:0" are one."""
    name = f"cuda:{place}" if isinstance(place, int) else str(place)
    return "cuda:0" if name == "cuda" else name
