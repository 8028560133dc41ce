"""One digest of a file system: what is not of the files does not count, one bit of what is does and is named."""

import io
import tarfile
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import Refuses

from requant.digest import sha256
from requant.environment.image.rootfs import LARGEST_KEPT, Rootfs, differences, read_rootfs
from requant.errors import BuildError


@dataclass(frozen=True)
class Made:
    """A member of a tar to be written."""

    name: str
    data: bytes = b""
    kind: bytes = tarfile.REGTYPE
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    link: str = ""
    time: int = 0
    pax: tuple[tuple[str, str], ...] = ()


def tar(made: Sequence[Made], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, errors="surrogateescape") as file:
        for each in made:
            member = tarfile.TarInfo(each.name)
            member.type, member.mode, member.uid, member.gid = each.kind, each.mode, each.uid, each.gid
            member.linkname, member.mtime, member.pax_headers = each.link, each.time, dict(each.pax)
            member.size = len(each.data) if each.kind == tarfile.REGTYPE else 0
            member.devmajor, member.devminor = 1, 3
            file.addfile(member, io.BytesIO(each.data))
    return out.getvalue()


def read(data: bytes, *keep: str) -> Rootfs:
    return read_rootfs(io.BytesIO(data), "it", keep)


def digest(*made: Made) -> str:
    return read(tar(made)).digest


FILES = (
    Made("etc", kind=tarfile.DIRTYPE, mode=0o755),
    Made("etc/os-release", b"ID=debian\n"),
    Made("bin", kind=tarfile.SYMTYPE, link="usr/bin", mode=0o777),
    Made("usr/bin/sh", b"\x7fELF", mode=0o755),
    Made("usr/bin/su", b"\x7fELF", mode=0o4755),
    Made("var/pipe", kind=tarfile.FIFOTYPE),
)


def test_what_is_read() -> None:
    found = read(tar(FILES)).entries
    assert list(found) == [each.name for each in FILES]
    assert [each.kind for each in found.values()] == ["folder", "file", "link", "file", "file", "pipe"]
    assert found["bin"].target == "usr/bin"
    assert found["usr/bin/su"].mode == 0o4755
    assert found["etc/os-release"].sha256 == sha256(b"ID=debian\n")
    assert found["etc"].sha256 == ""


def test_the_digest_stays_what_it_is() -> None:
    """Recorded evidence holds it: another form of the same files would make all of it stale."""
    assert digest(*FILES) == "b135eac2f2e6dd61bedb4c8ae9cee74ec6740d2eddf7a91e5e20c3e80996b3f8"


names = st.lists(st.text("ab.-é\\", min_size=1).filter(lambda part: part not in (".", "..")), min_size=1, max_size=3)
made = st.builds(
    Made,
    name=names.map("/".join),
    data=st.binary(max_size=2000),
    kind=st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 1 << 31),
    gid=st.integers(0, 1 << 31),
    link=st.text("ab/.", min_size=1),
    time=st.integers(0, 1 << 33),
)
trees = st.lists(made, max_size=8, unique_by=lambda each: each.name)


@given(trees, st.randoms(use_true_random=False), st.integers(0, 1 << 33))
def test_order_time_and_form_do_not_matter(found: list[Made], random: object, time: int) -> None:
    shuffled = [replace(each, time=time, name=f"./{each.name}") for each in found]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    expected = read(tar(found))
    assert read(tar(shuffled)).digest == expected.digest
    assert read(tar(shuffled, tarfile.GNU_FORMAT)).digest == expected.digest
    at_once = [replace(each, time=time) for each in found]
    assert differences(read(tar(at_once)), read(tar(shuffled))) == ()


@given(trees, trees)
def test_equal_digests_are_equal_files(one: list[Made], two: list[Made]) -> None:
    first, second = (read(tar([replace(each, time=0) for each in files])) for files in (one, two))
    assert (first.digest == second.digest) == (first.entries == second.entries)
    assert (first.digest == second.digest) == (differences(first, second) == ())


@pytest.mark.parametrize(
    ("number", "change", "said"),
    [
        (1, {"data": b"ID=debiao\n"}, "etc/os-release: sha256"),
        (1, {"mode": 0o645}, "etc/os-release: mode"),
        (1, {"uid": 1}, "etc/os-release: uid"),
        (1, {"gid": 1}, "etc/os-release: gid"),
        (2, {"link": "usr/bio"}, "bin: target"),
        (4, {"mode": 0o755}, "usr/bin/su: mode"),
        (0, {"mode": 0o700}, "etc: mode"),
        (1, {"pax": (("SCHILY.xattr.security.capability", "\x01\x00\x02"),)}, "etc/os-release: attributes"),
        (5, {"kind": tarfile.CHRTYPE}, "var/pipe: kind, target"),
    ],
)
def test_one_bit_counts_and_is_named(number: int, change: dict[str, object], said: str) -> None:
    other = [*FILES]
    other[number] = replace(FILES[number], **change)  # type: ignore[arg-type]
    assert digest(*other) != digest(*FILES)
    assert differences(read(tar(FILES)), read(tar(other))) == (said,)


def test_a_path_of_one_side_is_named() -> None:
    all_of_them, fewer = read(tar(FILES)), read(tar(FILES[:-1]))
    assert differences(all_of_them, fewer) == ("var/pipe: only in the first",)
    assert differences(fewer, all_of_them) == ("var/pipe: only in the second",)


def test_another_time_is_named_and_does_not_count() -> None:
    """Except that of the folder in which engines write."""
    later = read(tar([replace(each, time=1) for each in FILES]))
    assert later.digest == digest(*FILES)
    assert differences(read(tar(FILES)), later) == tuple(sorted(f"{each.name}: time" for each in FILES[1:]))


def test_what_engines_put_in_does_not_count() -> None:
    theirs = [
        Made(name, b"x") for name in (".dockerenv", "etc/hosts", "etc/mtab", "proc/1/status", "dev/null", "run/a")
    ]
    assert digest(*FILES, *theirs) == digest(*FILES)
    assert digest(*FILES, Made("etc/hostsx")) != digest(*FILES)
    assert digest(*FILES, Made("device/null")) != digest(*FILES)
    assert digest(Made("./", kind=tarfile.DIRTYPE), *FILES) == digest(*FILES)


def test_a_hard_link_counts_as_a_file(refuses: Refuses) -> None:
    """Which of its names is the link depends on the order of the tar."""
    link = Made("usr/bin/dash", kind=tarfile.LNKTYPE, link="usr/bin/sh")
    copy = Made("usr/bin/dash", b"\x7fELF", mode=0o755)
    assert digest(*FILES, link) == digest(*FILES, copy)
    with refuses(BuildError):
        read(tar([link, *FILES]))


def test_names_that_are_no_text() -> None:
    odd = [Made("a\udcff", b"1"), Made("a\\xff", b"1"), Made("link", kind=tarfile.SYMTYPE, link="\udcff")]
    found = read(tar(odd, tarfile.GNU_FORMAT))
    assert list(found.entries) == ["a\\xff", "a\\\\xff", "link"]
    assert len(found.digest) == 64


def test_asked_content_is_kept() -> None:
    found = read(tar(FILES), "etc/os-release", "etc", "absent")
    assert found.kept == {"etc/os-release": b"ID=debian\n"}


def test_what_is_kept_has_a_limit(refuses: Refuses) -> None:
    header = tarfile.TarInfo("etc/os-release")
    header.size = LARGEST_KEPT + 1
    with refuses(BuildError):
        read(header.tobuf() + bytes(1024), "etc/os-release")


def test_an_absolute_path_is_the_roots() -> None:
    assert list(read(tar([Made("/usr/bin/sh")])).entries) == ["usr/bin/sh"]


@pytest.mark.parametrize("second", ["etc/os-release", "./etc//os-release", "/etc/os-release", "etc/./os-release"])
def test_a_path_that_stands_twice_is_refused(second: str, refuses: Refuses) -> None:
    with refuses(BuildError, shared=True):
        read(tar([*FILES, Made(second, b"other")]))


def test_an_unknown_type_is_refused(refuses: Refuses) -> None:
    with refuses(BuildError):
        read(tar([Made("x", kind=b"Z")]))


@given(st.integers(0, len(tar(FILES)) - tarfile.RECORDSIZE + 8 * tarfile.BLOCKSIZE))
def test_cut_off_anywhere(length: int) -> None:
    """Also between two members, where tarfile itself sees an end like any other."""
    whole = tar(FILES)
    end = len(whole.rstrip(b"\0"))
    try:
        found = read(whole[:length])
    except BuildError as error:
        assert "it: " in str(error)
        return
    assert length >= end + 2 * tarfile.BLOCKSIZE - 512
    assert found == read(whole)


def test_no_damaged_byte_passes_unnoticed() -> None:
    """A header is refused by its checksum, a content is another digest; nothing else of the tar is anybody's."""
    whole = tar(FILES)
    with tarfile.open(fileobj=io.BytesIO(whole)) as file:
        found = file.getmembers()
    checksum = range(148, 156)  # written with blanks, of which more or fewer are the same number
    for member in found:
        for position in (each for each in range(512) if each not in checksum):
            with pytest.raises(BuildError):
                read(damaged(whole, member.offset + position))
        for position in range(member.size):
            assert read(damaged(whole, member.offset_data + position)).digest != digest(*FILES)


def damaged(whole: bytes, position: int) -> bytes:
    return whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :]


@given(st.binary(max_size=2000))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(BuildError):
        read(data or b"x")


def test_nothing_at_all_is_refused() -> None:
    with pytest.raises(BuildError):
        read(b"")


def test_what_follows_the_end_is_damage(refuses: Refuses) -> None:
    with refuses(BuildError):
        read(tar(FILES) + b"more")
    assert read(tar(FILES) + bytes(4096)).digest == digest(*FILES)


def test_the_stream_is_not_held() -> None:
    """100 MB pass through; what stays is a record for each path."""
    header = tarfile.TarInfo("big")
    header.size = 100 << 20

    class Long(io.RawIOBase):
        def __init__(self) -> None:
            self.head, self.blocks = header.tobuf(), (header.size + 1024) >> 9

        def read(self, size: int = -1, /) -> bytes:
            if self.head:
                data, self.head = self.head, b""
                return data.ljust(size, b"\0")
            blocks = min(size >> 9, self.blocks)
            self.blocks -= blocks
            return bytes(blocks << 9)

    tracemalloc.start()
    try:
        assert read_rootfs(Long(), "it").entries.keys() == {"big"}
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_long_names_and_attributes_are_read() -> None:
    """As long as Linux lets them be, in both forms of tar."""
    name, link = "n" * 4096, "l" * 4096
    odd = [Made(name, b"1", pax=(("SCHILY.xattr.user.a", "v" * 65536),)), Made("l", kind=tarfile.SYMTYPE, link=link)]
    found = read(tar(odd)).entries
    assert found[name].attributes == {"user.a": b"v".hex() * 65536}
    assert found["l"].target == link
    assert found["l"] == read(tar(odd, tarfile.GNU_FORMAT)).entries["l"]
