"""Tars that others made: what is listed, what is refused, and in how much memory."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from infra.errors import UserError
from pipelines.data.prepare.sources import open_source
from pipelines.data.prepare.sources.index import IndexBuilder
from pipelines.data.prepare.sources.names import Names
from pipelines.data.prepare.sources.tar import list_members
from tests.pipelines.data.built import jpeg, put, tar_bytes


def listed(data: bytes) -> dict[str, bytes]:
    members = list_members(io.BytesIO(data), len(data), "x.tar")
    return {member.name: data[member.start : member.start + member.size] for member in members}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_found_by_their_headers(form: int) -> None:
    name = "d" * 90 + "/" + "é" * (5 if form == tarfile.USTAR_FORMAT else 90) + ".jpg"
    assert listed(tar_bytes([("./a.jpg", b"one"), (name, b"2" * 1000), ("b.jpg", b"")], form)) == {
        "a.jpg": b"one",
        name: b"2" * 1000,
        "b.jpg": b"",
    }
    assert listed(tar_bytes([])) == {}


def special(kind: bytes, name: str = "x.jpg", **fields: object) -> bytes:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


def with_size(size: int) -> bytes:
    """A header that promises `size` bytes."""
    info = tarfile.TarInfo("x.jpg")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


ROOT = Path(__file__).resolve().parents[4]

HOSTILE = [
    ("climbs", tar_bytes([("../../x.jpg", b"1")]), r"x\.tar: member '\.\./\.\./x\.jpg' leads outside of the archive"),
    ("absolute", tar_bytes([("/etc/x.jpg", b"1")]), r"x\.tar: member '/etc/x\.jpg' leads outside"),
    ("hidden climb", tar_bytes([("a/../../x.jpg", b"1")]), "leads outside"),
    ("folder climbs", special(tarfile.DIRTYPE, "../d"), "leads outside"),
    ("symlink", special(tarfile.SYMTYPE, linkname="/etc/passwd"), r"x\.tar: member 'x\.jpg' is a link"),
    ("hard link", special(tarfile.LNKTYPE, linkname="y.jpg"), "is a link"),
    ("device", special(tarfile.CHRTYPE, devmajor=1, devminor=5), "is not a regular file"),
    ("fifo", special(tarfile.FIFOTYPE), "is not a regular file"),
    ("sparse", special(tarfile.GNUTYPE_SPARSE), "is sparse"),
    ("beyond the end", with_size(1 << 40), r"ends at byte 1,099,511,628,288 of 1,536: is the archive whole\?"),
    ("negative", with_size(-512), "ends at byte 0 of 1,536"),
    ("huge pax header", special(tarfile.XHDTYPE, size=1 << 33), "a header of 8,589,934,592 bytes"),
    ("cut in a body", tar_bytes([("a.jpg", b"1" * 5000)])[:2000], r"ends at byte 5,512 of 2,000"),
    ("cut between members", tar_bytes([("a.jpg", b"1" * 512)])[:1024], "without the mark of an archive's end"),
    ("no tar", b"\xff\xd8\xff" * 1000, "is not a whole, uncompressed tar"),
    ("empty file", b"", "is not a whole, uncompressed tar"),
    (
        "not UTF-8",
        tar_bytes([("a.jpg", b"1")]).replace(b"a.jpg", b"\xff.jpg"),
        "bad header|is not UTF-8|is not a whole",
    ),
]


@pytest.mark.parametrize(("data", "message"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE])
def test_hostile_tars_are_refused_in_one_line(data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as info:
        listed(data)
    assert "\n" not in str(info.value)


def test_a_damaged_header_is_not_the_end_of_the_archive() -> None:
    data = bytearray(tar_bytes([("a.jpg", b"1"), ("b.jpg", b"2")]))
    data[1024 + 20] ^= 1
    with pytest.raises(UserError, match="bad header at byte 1,024"):
        listed(bytes(data))


SAMPLES = [
    ("no label", [("a.jpg", b"1"), ("b.jpg", b"1"), ("b.cls", b"0")], r"sample 'a' has no label \(\.cls or \.json\)"),
    ("no image", [("a.cls", b"1")], "sample 'a' has no image, only .cls"),
    ("interleaved", [("a.jpg", b""), ("b.jpg", b""), ("a.cls", b"0"), ("b.cls", b"0")], "must follow each other"),
    ("key again", [("a.jpg", b""), ("a.cls", b"0"), ("b.jpg", b""), ("b.cls", b"0"), ("a.jpg", b""), ("a.cls", b"1")],
     "key 'a' belongs to two samples"),
    ("member twice", [("a.jpg", b""), ("a.jpg", b""), ("a.cls", b"0")], r"member 'a\.jpg' is there twice"),
    ("two images", [("a.jpg", b""), ("a.png", b""), ("a.cls", b"0")], r"'a\.png' is a second image of sample 'a'"),
    ("word", [("a.jpg", b""), ("a.cls", b"cat")], r"member 'a\.cls' holds b'cat', which is not a class number"),
    ("negative", [("a.jpg", b""), ("a.cls", b"-1")], r"holds -1, which is not a class number \(0, 1, …\)"),
    ("huge", [("a.jpg", b""), ("a.cls", b"1000000000")], "holds 1000000000, which is not a class number"),
    ("float", [("a.jpg", b""), ("a.json", b'{"label": 1.5}')], "holds 1.5, which is not a class number"),
    ("no JSON", [("a.jpg", b""), ("a.json", b"{")], "which is not a class number"),
    ("no label in JSON", [("a.jpg", b""), ("a.json", b"{}")], "sample 'a' has no label"),
    ("link", None, "is a link"),
]  # fmt: skip


@pytest.mark.parametrize(("members", "message"), [case[1:] for case in SAMPLES], ids=[case[0] for case in SAMPLES])
def test_bad_webdataset_samples_name_tar_and_member(
    tmp_path: Path, members: list[tuple[str, bytes]] | None, message: str
) -> None:
    data = special(tarfile.SYMTYPE, linkname="/etc/passwd") if members is None else tar_bytes(members)
    put(tmp_path / "in", {"train-0.tar": data})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=rf"train-0\.tar: .*{message}") as info:
        _ = open_source(str(tmp_path / "in"), holdout=0).contents
    assert "\n" not in str(info.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_json_without_a_label_beside_a_cls(tmp_path: Path) -> None:
    members = [("a.json", b'{"caption": "x"}'), ("a.jpg", jpeg(0)), ("a.cls", b"4"), ("readme.txt", b"")]
    source = open_source(str(put(tmp_path, {"train-0.tar": tar_bytes(members)})), holdout=0)
    assert source.splits["train"].labels.tolist() == [4]


LISTING = """
import resource, sys
from pipelines.data.prepare.sources import open_source
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = open_source(sys.argv[1], holdout=0).rows
print(rows["train"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.faults
def test_listing_200_000_members_takes_under_30_megabytes(tmp_path: Path) -> None:
    """Of the process, at its peak. The index itself has 80 bytes a member: see the next test."""
    count = 100_000
    blank = {size: _blank(size) for size in (600, 1)}
    with (tmp_path / "train-0.tar").open("wb") as file:
        for number in range(count):
            file.write(_named(blank[600], b"%024d.jpg" % number) + bytes(1024))
            file.write(_named(blank[1], b"%024d.cls" % number) + b"7".ljust(512, b"\0"))
        file.write(bytes(1024))
    command = [sys.executable, "-c", LISTING, str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows, kilobytes = map(int, result.stdout.split())
    assert rows == count
    assert kilobytes < 30_000


def _blank(size: int) -> bytes:
    info = tarfile.TarInfo("")
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


def _named(header: bytes, name: bytes) -> bytes:
    """The header with this name and the checksum that goes with it."""
    total = 256 + sum(header[:148]) + sum(header[156:]) + sum(name)
    return name.ljust(100, b"\0") + header[100:148] + b"%06o\0 " % total + header[156:]


def test_an_index_row_takes_30_bytes_and_its_key() -> None:
    index = IndexBuilder()
    for number in range(1000):
        index.add(0, number, 1, 2, f"{number:020d}")
    columns = (index.object, index.starts, index.sizes, index.labels, index.ends)
    assert sum(column.itemsize for column in columns) + len(index.text) / 1000 == 32 + 20


def test_names() -> None:
    texts = ["", "a", "é€", "x" * 300, "", "last"]
    names = Names.of(texts)
    assert (len(names), list(names), names[2]) == (6, texts, "é€")
    assert list(names.take(np.array([5, 0, 2, 2]))) == ["last", "", "é€", "é€"]
    assert list(Names.joined([names, Names.of([]), names.take(np.array([3]))])) == [*texts, "x" * 300]
    assert list(names.take(np.array([], dtype=np.int64))) == []
