"""What is known of `vllm serve`: the flags of each release that `inspect` models, in flags.json."""

import json
from functools import cache
from importlib import resources

from requant.inspect.loaders.vllm import VLLM

FLAGS = "flags.json"


@cache
def flags() -> dict[str, frozenset[str]]:
    """Return the flags of each release, by its name as a requirement."""
    read = json.loads(resources.files(__name__.rpartition(".")[0]).joinpath(FLAGS).read_bytes())
    return {loader.name: frozenset((*read["all"], *read[loader.name])) for loader in VLLM}


def releases_with(flag: str) -> tuple[str, ...]:
    """Return the releases that take a flag; `--no-x` is `--x`, and `--x.key` a key of `--x`."""
    name = flag.partition(".")[0].replace("_", "-")
    asked = {name, name.replace("--no-", "--", 1)}
    return tuple(release for release, known in flags().items() if asked & known)
