"""`inspect` on the EC checkpoint at full scale, without a weight: 96,061 tensors, 11 files, sparse data.

The peer is `json` alone, parsing the same headers. Prints the ratios and the peak memory; with --check it fails
where they are beyond 3x, 10x and 500 MB. Not named inspect.py: beside it no script could import the standard one.
"""

import argparse
import json
import resource
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from requant.checkpoint.checkpoint import INDEX, Checkpoint, Held, Tensor, index, json_file, shard_names, spread
from requant.inspect import inspect
from requant.inspect.headers import read_headers
from requant.inspect.loaders import LOADERS, TENSOR_PARALLEL
from requant.model.base_config import base_config
from requant.model.summary import summarize
from requant.model.target import target_of
from requant.passes import PASSES, Context
from requant.recipe import read_recipe

RECIPE = Path(__file__).parent.parent / "builds" / "ec"
EXTRAS = "model_extra_tensors.safetensors"
SIDES = ("LICENSE", "chat_template.jinja", "generation_config.json", "merges.txt", "preprocessor_config.json")
SIDES += ("tokenizer.json", "tokenizer_config.json", "video_preprocessor_config.json", "vocab.json")


def render(folder: Path) -> Path:
    """Write every header of the checkpoint and no data: files of the right length that are holes behind it."""
    recipe = read_recipe(RECIPE)
    made, config = summarize(recipe), base_config(recipe)
    nothing = Held(b"")
    main = {name: Tensor(spec, nothing) for name, spec in made.main.items()}
    shards = spread(main, shard_names(recipe.layout.shards))
    shards[EXTRAS] = {name: Tensor(spec, nothing) for name, spec in made.extras.items()}
    for file, tensors in shards.items():
        end, header = 0, {"__metadata__": {"format": "pt"}}
        for name, tensor in tensors.items():
            stop = end + tensor.spec.nbytes
            header[name] = {"dtype": tensor.spec.dtype, "shape": list(tensor.spec.shape), "data_offsets": [end, stop]}
            end = stop
        text = json.dumps(header, separators=(",", ":")).encode()
        with (folder / file).open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            out.truncate(8 + len(text) + end)
    base = Checkpoint({}, {"config.json": json_file(config)})
    finished = PASSES["quantization_config"](
        Checkpoint({}, {}), Context(base, target_of(recipe, None), recipe, recipe.effort(False), "0.13.0")
    )
    files = {**dict.fromkeys(SIDES, Held(b"{}")), **finished.files, INDEX: index(shards)}
    for name, content in files.items():
        (folder / name).write_bytes(b"".join(content.chunks()))
    return folder


def parse(folder: Path) -> None:
    """Parse the headers with `json` and nothing else."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))


def seconds(work: Callable[[], object], times: int) -> float:
    """Return the least processor time of some runs: what else runs on the machine makes all others longer."""
    spent = []
    for _ in range(times):
        begin = time.process_time()
        work()
        spent.append(time.process_time() - begin)
    return min(spent)


def main() -> None:
    """Measure, print, and with --check judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where a bound is not kept")
    parser.add_argument("--memory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        inspect(read_headers(options.memory), LOADERS, TENSOR_PARALLEL)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = render(Path(name))
        alone = seconds(lambda: parse(folder), 7)
        one = seconds(lambda: inspect(read_headers(folder)), 7)
        every = seconds(lambda: inspect(read_headers(folder), LOADERS, TENSOR_PARALLEL), 5)
        command = [sys.executable, __file__, "--memory", name]
        memory = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        findings = inspect(read_headers(folder)).findings
    print(f"json alone                     {alone:6.3f} s")
    print(f"inspect, one loader and TP     {one:6.3f} s  {one / alone:5.2f}x")
    print(f"inspect, all loaders and TPs   {every:6.3f} s  {every / alone:5.2f}x")
    print(f"peak memory, own process       {memory:6d} MiB")
    print("findings: " + ", ".join(sorted({f"{each.rule} {each.severity}" for each in findings})))
    if options.check and (one > 3 * alone or every > 10 * alone or memory > 500):
        raise SystemExit("beyond a bound")


if __name__ == "__main__":
    main()
