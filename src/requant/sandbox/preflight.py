"""What a full build needs, checked before anything long starts: device, memory, disk, downloads."""

import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from requant.errors import NotAvailableError
from requant.formats import TENSORS
from requant.hub.fetch import missing
from requant.hub.pinned import Pins
from requant.model.base_config import base_config
from requant.model.target import target_of
from requant.programs import Accelerator, accelerators
from requant.recipe import Hardware, Recipe

GIB = 1 << 30
TRIAL_MEMORY = 3
"""Times the tiny model's bytes that its tuning takes of the host's memory: the model, its layers apart, what is
saved."""
TRIAL_DISK = 4
"""Times the tiny model's bytes that a trial takes on disk: it, AutoRound's output, both builds, resume state."""
MEMORY = Path("/proc/meminfo")


@dataclass(frozen=True)
class Cost:
    """What a full build will take; `lacking` says what this machine does not have."""

    download_bytes: int
    disk_bytes: int
    hours: float
    lacking: tuple[str, ...]

    def text(self) -> str:
        """Return the cost in one line."""
        return (
            f"{self.download_bytes / GIB:.1f} GiB to download, {self.disk_bytes / GIB:.1f} GiB of disk, "
            f"about {self.hours:g} hours of tuning"
        )


def cost(recipe: Recipe, downloads: Sequence[tuple[Pins, Path, list[str]]], out: Path) -> Cost:
    """Return what a build would take; each of `downloads` is what to fetch, whereto, and which files of it."""
    places = [(folder, missing(pins, folder, wanted=wanted).bytes) for pins, folder, wanted in downloads]
    download = sum(size for _, size in places)
    written = stored(pins for pins, _, _ in downloads) + resume_bytes(recipe)
    return Cost(download, download + written, recipe.hardware.hours, tuple(_lacking(recipe, [*places, (out, written)])))


def stored(pins: Iterable[Pins]) -> int:
    """Return the bytes of all that is pinned, as far as sizes are known.

    What a build writes takes no more: the raw and the finished checkpoint together are smaller than the base.
    """
    return sum(file.bytes or 0 for each in pins for file in each.files.values())


def resume_bytes(recipe: Recipe) -> int:
    """Return what a full build keeps on disk to go on with: every tuned block, and the inputs of two blocks.

    Block inputs are two streams [samples, tokens, hidden] in the precision of the tuning.
    """
    effort = recipe.effort(tiny=False)
    packed = sum(spec.nbytes for name, spec in target_of(recipe, None).kept.items() if name.endswith(TENSORS))
    width = {"bfloat16": 2, "float32": 4}[effort.precision]
    config = base_config(recipe)
    hidden: int = config.get("text_config", config)["hidden_size"]
    return packed + 2 * 2 * effort.samples * effort.sequence_length * hidden * width


def require(found: Cost, instead: str) -> None:
    """Raise NotAvailableError with everything that is lacking, what a build would cost, and what to do `instead`."""
    if found.lacking:
        raise _cannot("tune the full model", found.lacking, f"A full build takes {found.text()}.\n{instead}")


def require_device(recipe: Recipe, instead: str) -> None:
    """Raise NotAvailableError where the recipe's GPU is not here, with what to do `instead`."""
    if recipe.hardware.device == "cuda":
        try:
            accelerator(recipe.hardware)
        except NotAvailableError as error:
            raise _cannot("tune the full model", (str(error),), instead) from None


def _cannot(what: str, lacking: Sequence[str], advice: str) -> NotAvailableError:
    return NotAvailableError("\n".join((f"this machine cannot {what}:", *(f"  {each}" for each in lacking))), advice)


def require_for_trial(recipe: Recipe, folder: Path, base_bytes: int) -> None:
    """Raise NotAvailableError where this machine is not the recipe's, or `base_bytes` do not fit on it."""
    hardware = replace(recipe.hardware, host_memory_gib=math.ceil(TRIAL_MEMORY * base_bytes / GIB))
    if lacking := _lacking(replace(recipe, hardware=hardware), [(folder, TRIAL_DISK * base_bytes)]):
        raise _cannot(
            "try this recipe",
            lacking,
            "Run the trial on the machine that is to do the full build. To see here, on the CPU, what a trial does:\n"
            f"requant trial {recipe.path.parent} --rehearsal --size mini",
        )


def _lacking(recipe: Recipe, places: Iterable[tuple[Path, int]]) -> list[str]:
    hardware = recipe.hardware
    lacking = []
    if hardware.device == "cuda":
        try:
            accelerator(hardware)
        except NotAvailableError as error:
            lacking.append(str(error))
    memory = _memory("MemTotal")
    if memory < hardware.host_memory_gib * GIB:
        lacking.append(f"memory: {hardware.host_memory_gib} GiB; found {memory / GIB:.1f} GiB")
    disks: dict[int, tuple[Path, int]] = {}
    for folder, size in places:
        place = next(each for each in (folder, *folder.resolve().parents) if each.exists())
        device = place.stat().st_dev  # the cache and the output may lie on one disk, or on two
        disks[device] = (place, disks.get(device, (place, 0))[1] + size)
    for place, size in disks.values():
        if (free := shutil.disk_usage(place).free) < size:
            lacking.append(f"disk: {size / GIB:.0f} GiB under {place}; {free / GIB:.0f} GiB are free")
    return lacking


def accelerator(hardware: Hardware) -> Accelerator:
    """Return the GPU that a build takes: the freest one of the recipe's name, with its memory free.

    Free memory counts, because AutoRound lays out the model by what is free. A GPU whose memory the driver does not
    know shares the host's: then both share what is available there. Raises NotAvailableError, which says what was
    found.
    """
    found = accelerators()
    named = [each for each in found if hardware.accelerator in each.name]
    enough = [each for each in named if _sandbox(hardware, each)]
    if enough:
        return max(enough, key=lambda each: each.free or 0)
    seen = ", ".join(map(str, found)) or "none"
    shared = any(each.free is None for each in named)
    if shared:
        seen += (
            f", and {_memory('MemAvailable') / GIB:.0f} GiB available in the memory that it shares with the host, "
            f"which takes {hardware.host_memory_gib} GiB of it"
        )
    raise NotAvailableError(
        f"GPU: {hardware.accelerator} with {hardware.memory_gib} GiB free; found {seen}",
        "End what else uses the GPU. Where CUDA_VISIBLE_DEVICES is set, only the GPUs that it names are looked at."
        if found
        else "nvidia-smi shows no GPU here, or CUDA_VISIBLE_DEVICES leaves none: use a machine that has this one.",
    )


def _sandbox(hardware: Hardware, found: Accelerator) -> bool:
    if found.free is None:
        return _memory("MemAvailable") >= (hardware.memory_gib + hardware.host_memory_gib) * GIB
    return found.free >= hardware.memory_gib * 1024


def _memory(kind: str) -> int:
    """Return a line of /proc/meminfo in bytes: `MemTotal`, or `MemAvailable`, which programs could still get."""
    line = next(line for line in MEMORY.read_text().splitlines() if line.startswith(f"{kind}:"))
    return int(line.split()[1]) * 1024
