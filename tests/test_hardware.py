"""How a worker names the processor that it runs on: two kinds must not be one hardware class."""

import pytest

from requant.worker.determinism import processor

X86 = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n"
ARM = "processor\t: 0\nCPU implementer\t: 0x41\nCPU variant\t: 0x1\nCPU part\t: 0xd40\nCPU revision\t: 1\n"
OTHER_ARM = ARM.replace("0xd40", "0xd4f")


@pytest.mark.parametrize(
    ("cpuinfo", "named"),
    [
        (X86, ("AuthenticAMD", "AMD EPYC (25/17)")),
        (ARM, ("0x41", "part 0xd40 (0x1)")),
        (OTHER_ARM, ("0x41", "part 0xd4f (0x1)")),
        ("processor\t: 0\n", ("", " (/)")),
    ],
)
def test_a_processor_is_named(cpuinfo: str, named: tuple[str, str]) -> None:
    assert processor(cpuinfo) == processor(f"{cpuinfo}\n{ARM}") == named
