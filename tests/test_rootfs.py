"""One digest of a file system: what is not of the files does not count, one bit of what is does and is named."""

import io
import tarfile
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from requant.digest import sha256
from requant.errors import BuildError
from requant.images.rootfs import LARGEST_KEPT, Rootfs, differences, members, read_rootfs
from requant.images.tar import LARGEST, Header


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


def block(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    """Return a header alone, which may lie."""
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def extended(data: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    return block("x", len(data), kind) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def record(key: str, value: str) -> bytes:
    rest = f" {key}={value}\n".encode()
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length += 1
    return str(length).encode() + rest


@contextmanager
def little(limit: int = 16 << 20) -> Iterator[None]:
    """What is done within takes at most `limit` bytes of memory."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


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
    assert differences(expected.entries, read(tar(shuffled)).entries) == ()


@given(trees, trees)
def test_equal_digests_are_equal_files(one: list[Made], two: list[Made]) -> None:
    first, second = read(tar(one)), read(tar(two))
    assert (first.digest == second.digest) == (first.entries == second.entries)
    assert (first.digest == second.digest) == (differences(first.entries, second.entries) == ())


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
    assert differences(read(tar(FILES)).entries, read(tar(other)).entries) == (said,)


def test_a_path_of_one_side_is_named() -> None:
    all_of_them, fewer = read(tar(FILES)).entries, read(tar(FILES[:-1])).entries
    assert differences(all_of_them, fewer) == ("var/pipe: only in the first",)
    assert differences(fewer, all_of_them) == ("var/pipe: only in the second",)


def test_what_engines_put_in_does_not_count() -> None:
    theirs = [
        Made(name, b"x") for name in (".dockerenv", "etc/hosts", "etc/mtab", "proc/1/status", "dev/null", "run/a")
    ]
    assert digest(*FILES, *theirs) == digest(*FILES)
    assert digest(*FILES, Made("etc/hostsx")) != digest(*FILES)
    assert digest(*FILES, Made("device/null")) != digest(*FILES)
    assert digest(Made("./", kind=tarfile.DIRTYPE), *FILES) == digest(*FILES)


def test_a_hard_link_counts_as_a_file() -> None:
    """Which of its names is the link depends on the order of the tar."""
    link = Made("usr/bin/dash", kind=tarfile.LNKTYPE, link="usr/bin/sh")
    copy = Made("usr/bin/dash", b"\x7fELF", mode=0o755)
    assert digest(*FILES, link) == digest(*FILES, copy)
    with pytest.raises(BuildError, match="hard link to usr/bin/sh, which is not before it"):
        read(tar([link, *FILES]))


def test_names_that_are_no_text() -> None:
    odd = [Made("a\udcff", b"1"), Made("a\\xff", b"1"), Made("link", kind=tarfile.SYMTYPE, link="\udcff")]
    found = read(tar(odd, tarfile.GNU_FORMAT))
    assert list(found.entries) == ["a\\xff", "a\\\\xff", "link"]
    assert len(found.digest) == 64


def test_asked_content_is_kept() -> None:
    found = read(tar(FILES), "etc/os-release", "etc", "absent")
    assert found.kept == {"etc/os-release": b"ID=debian\n"}


def test_what_is_kept_has_a_limit() -> None:
    header = tarfile.TarInfo("etc/os-release")
    header.size = LARGEST_KEPT + 1
    with pytest.raises(BuildError, match="expected at most"):
        read(header.tobuf() + bytes(1024), "etc/os-release")


@pytest.mark.parametrize("name", ["../etc/passwd", "usr/../../etc", "/../x", ".."])
def test_a_path_that_leaves_is_refused(name: str) -> None:
    with pytest.raises(BuildError, match="leaves it"):
        read(tar([Made(name)]))


def test_an_absolute_path_is_the_roots() -> None:
    assert list(read(tar([Made("/usr/bin/sh")])).entries) == ["usr/bin/sh"]


@pytest.mark.parametrize("second", ["etc/os-release", "./etc//os-release", "/etc/os-release", "etc/./os-release"])
def test_a_path_that_stands_twice_is_refused(second: str) -> None:
    with pytest.raises(BuildError, match="holds etc/os-release twice"):
        read(tar([*FILES, Made(second, b"other")]))


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(BuildError, match="unknown type"):
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


def test_what_follows_the_end_is_damage() -> None:
    with pytest.raises(BuildError, match="cut off or damaged after 6 paths"):
        read(tar(FILES) + b"more")
    assert read(tar(FILES) + bytes(4096)).digest == digest(*FILES)


def test_the_stream_is_not_held() -> None:
    """100 MB pass through; what stays is a record for each path."""
    header = tarfile.TarInfo("big")
    header.size = 100 << 20

    class Endless(io.RawIOBase):
        left = (header.size + 1024) >> 9

        def read(self, size: int = -1, /) -> bytes:
            if self.tell_header:
                data, self.tell_header = self.tell_header, b""
                return data.ljust(size, b"\0")
            blocks = min(size >> 9, self.left)
            self.left -= blocks
            return bytes(blocks << 9)

        tell_header = header.tobuf()

    with little(8 << 20):
        (member,) = members(Endless(), "it")
    assert member.entry.sha256


FORMS = st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
PLACES = ("offset", "offset_data")
FIELDS = ("name", "mode", "uid", "gid", "size", "mtime", "type", "linkname", "devmajor", "devminor", *PLACES)
LONG = "folder-é/" * 40
ATTRIBUTES = (("SCHILY.xattr.user.a", "\udcff\x00="), ("SCHILY.xattr.user.none", ""), ("comment", "1 a=b\n"))
END = bytes(2 * tarfile.BLOCKSIZE)


@given(trees, FORMS)
def test_the_honest_is_read_as_tarfile_reads_it(found: list[Made], form: int) -> None:
    found = [replace(each, name=f"{LONG}{each.name}", link=LONG + each.link, pax=ATTRIBUTES) for each in found] + found
    data = tar(found, form)
    for mode in ("r:", "r|"):
        with (
            tarfile.open(fileobj=io.BytesIO(data), mode=mode) as theirs,
            tarfile.open(fileobj=io.BytesIO(data), mode=mode, tarinfo=Header) as ours,
        ):
            for expected, member in zip(theirs, ours, strict=True):
                assert [getattr(member, field) for field in FIELDS] == [getattr(expected, field) for field in FIELDS]
                assert member.pax_headers.items() >= expected.pax_headers.items()
                assert member.pax_headers.keys() <= {*expected.pax_headers, "path", "linkpath"}


def test_long_names_and_attributes_are_read() -> None:
    """Both as GNU's tar and as POSIX' writes them, up to the limit."""
    name, link = "n" * 5000, "l" * 5000
    odd = [Made(name, b"1", pax=(("SCHILY.xattr.user.a", "v" * 65536),)), Made("l", kind=tarfile.SYMTYPE, link=link)]
    found = read(tar(odd)).entries
    assert found[name].attributes == {"user.a": b"v".hex() * 65536}
    assert found["l"].target == link
    assert found["l"] == read(tar(odd, tarfile.GNU_FORMAT)).entries["l"]
    whole = record("SCHILY.xattr.a", "v" * (LARGEST - tarfile.BLOCKSIZE - len("1048064 SCHILY.xattr.a=\n")))
    assert len(whole) == LARGEST - tarfile.BLOCKSIZE
    assert read(extended(whole) + block("a") + END).entries["a"].attributes
    with pytest.raises(BuildError, match="extension headers of more than"):
        read(extended(whole + b"\n") + block("a") + END)


def test_records_are_obeyed() -> None:
    said = record("size", "3") + record("uid", "7") + record("path", "b") + record("mtime", "1.5") + record("gid", "")
    (found,) = members(io.BytesIO(extended(said) + block("a", 0) + b"abc".ljust(512, b"\0") + END), "it", ("b",))
    assert (found.path, found.content, found.mtime, found.entry.uid, found.entry.gid) == ("b", b"abc", 1, 7, 0)
    comment = extended(record("comment", "6de0612"), tarfile.XGLTYPE)  # as `git archive` writes it
    assert read(comment + tar(FILES)) == read(tar(FILES))


@pytest.mark.parametrize("kind", [*b"xgXLK"])
@pytest.mark.parametrize("size", [LARGEST, 1 << 30, 1 << 40, 1 << 87])
def test_a_large_extension_header_is_not_read(kind: int, size: int) -> None:
    class Endless(io.RawIOBase):
        data = block("x", size, bytes([kind]))

        def read(self, size: int = -1, /) -> bytes:
            data, self.data = self.data, b""
            return data.ljust(size, b"\0")

    with little(), pytest.raises(BuildError, match="extension headers of more than 1,048,576 bytes"):
        read_rootfs(Endless(), "it")


def test_a_chain_of_extension_headers_has_an_end() -> None:
    with little(), pytest.raises(BuildError, match="extension headers of more than"):
        read(extended(b"") * 4000 + block("a") + END)
    with pytest.raises(BuildError, match="no member follows its extension header"):
        read(extended(b"") + END)


def test_the_headers_of_many_members_are_not_held() -> None:
    said = extended(record("comment", "x" * (LARGEST // 2)))

    class Many(io.RawIOBase):
        def __init__(self) -> None:
            self.parts = iter([*(part for number in range(100) for part in (said, block(str(number)))), END])
            self.left = b""

        def read(self, size: int = -1, /) -> bytes:
            self.left = self.left or next(self.parts, b"")
            data, self.left = self.left[:size], self.left[size:]
            return data

    with little():
        assert len(read_rootfs(Many(), "it").entries) == 100


@pytest.mark.parametrize(
    "data",
    [
        b"5 " + b"a" * 500_000,
        b"5 aaa" * 100_000 + b"=\n",
        b"1" * 500_000,
        record("comment", "1" * 500_000) + b"x",
        b"0 a=b\n",
        b"-6 a=b\n",
        b"7 a=b\n",
        b"5 a=b\n",
        b"6 a:b\n",
        b"5 =b\n",
        record("a", "b") + b"\0",
    ],
)
def test_a_damaged_pax_header_is_refused_at_once(data: bytes) -> None:
    """Some of these take tarfile time and memory beyond the square of their length."""
    with little(), pytest.raises(BuildError, match="a pax header is damaged at byte"):
        read(extended(data) + block("a") + END)


def test_long_digits_are_a_value() -> None:
    assert read(extended(record("comment", "1" * 500_000)) + block("a") + END).entries.keys() == {"a"}


@pytest.mark.parametrize("kind", [*b"0157xgXLKSZ"])
@pytest.mark.parametrize("size", [-1, -512, -1024, -(1 << 60)])
def test_a_negative_size_is_refused(kind: int, size: int) -> None:
    with pytest.raises(BuildError, match=f"'a': a size of {size:,} bytes"):
        read(block("b") + block("a", size, bytes([kind])) + END)


@pytest.mark.parametrize("size", ["-512", "-1", "1e3", "٣", "1_0", " 1", "0x1"])
def test_a_size_that_is_no_number_is_refused(size: str) -> None:
    with pytest.raises(BuildError, match=f"a size of '{size}' bytes"):
        read(extended(record("size", size)) + block("a") + END)


@pytest.mark.parametrize(
    "data",
    [
        block("a", 0, tarfile.GNUTYPE_SPARSE),
        extended(record("GNU.sparse.map", "0,0") + record("GNU.sparse.size", str(1 << 50))) + block("a"),
        extended(record("GNU.sparse.size", str(1 << 50)) + record("GNU.sparse.numblocks", "0")) + block("a"),
        extended(record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0")) + block("a", 512) + b"1\n" * 256,
        extended(record("GNU.sparse.realsize", str(1 << 50))) + block("a"),
    ],
)
def test_a_sparse_file_is_refused(data: bytes) -> None:
    with pytest.raises(BuildError, match="'a': a sparse file, expected its bytes"):
        read(data + END)


def test_what_readers_understand_differently_is_refused() -> None:
    with pytest.raises(BuildError, match=r"a global header says .'uid'"):
        read(extended(record("uid", "1"), tarfile.XGLTYPE) + tar(FILES))
    for first, second in ((b"L", b"L"), (b"x", b"x"), (b"L", b"x"), (b"x", b"L")):
        headers = (extended(record("path", "b") if kind == b"x" else b"b\0", kind) for kind in (first, second))
        with pytest.raises(BuildError, match=r"two extension headers say .'path'"):
            read(b"".join(headers) + block("a") + END)


@pytest.mark.parametrize("size", [0, 1, 1 << 60])
def test_a_root_that_is_a_file_is_refused(size: int) -> None:
    with pytest.raises(BuildError, match="its root is of the type"):
        read(block(".", size) + bytes(512) + END)


@given(st.lists(st.sampled_from([*b"01257xgXLKS"]), max_size=6), st.data())
def test_whatever_headers_say_reading_ends(kinds: list[int], drawn: st.DataObject) -> None:
    size = st.one_of(st.integers(-2048, 2048), st.sampled_from([1 << 20, 1 << 50, 1 << 87, -(1 << 87)]))
    parts = []
    for kind in kinds:
        parts.append(block(drawn.draw(st.sampled_from("ab.")), drawn.draw(size), bytes([kind])))
        parts.append(drawn.draw(st.sampled_from([b"", b"1\n", record("size", "-512"), record("path", "b")])))
        parts[-1] += bytes(-len(parts[-1]) % tarfile.BLOCKSIZE)
    with little():
        try:
            read(b"".join(parts) + END)
        except BuildError as error:
            assert str(error).startswith("it: ")
