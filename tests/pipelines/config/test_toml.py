"""TOML as editors write it: byte-order marks, line ends and tabs are read; what is no UTF-8 or no TOML says so."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from infra.errors import UserError
from pipelines.config.recipe import load_recipe
from pipelines.config.toml import read_toml

TEXT = '[model]\nname = "resnet20"\n[data]\nuri = "data"\nimage_size = 16\n'
READ = {
    "with a byte-order mark": codecs.BOM_UTF8 + TEXT.encode(),
    "with Windows line ends": TEXT.replace("\n", "\r\n").encode(),
    "with both": codecs.BOM_UTF8 + TEXT.replace("\n", "\r\n").encode(),
    "with tabs": TEXT.replace(" = ", "\t=\t").replace("[", "\t[").encode(),
    "without a last line end": TEXT.strip().encode(),
    "with letters of all kinds in comments": ("# café, ürün, 写真\n" + TEXT).encode(),
}


@pytest.mark.parametrize("content", READ.values(), ids=READ)
def test_it_is_read(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_bytes(content)
    recipe = load_recipe(tmp_path / "mine.toml")
    assert (recipe.name, recipe.model.name, recipe.data.image_size) == ("mine", "resnet20", 16)


REFUSED = {
    "UTF-16": (TEXT.encode("utf-16"), "mine.toml is UTF-16 text: save it as UTF-8"),
    "UTF-16, big end first": (codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"), "mine.toml is UTF-16 text"),
    "UTF-16 without a mark": (TEXT.encode("utf-16-le"), "mine.toml contains NUL bytes, so it is UTF-16 or not text"),
    "UTF-32": (TEXT.encode("utf-32"), "mine.toml is UTF-32 text"),
    "Latin-1": (
        ("# one\n# caf\u00e9\n" + TEXT).encode("latin-1"),
        r"mine.toml: line 2: byte 0xe9 is not UTF-8 \(Latin-1\?\): save it as UTF-8",
    ),
    "no quotes": (b"[model]\nname = resnet20\n", r"line 2, column 8: .*in: name = resnet20 \(text needs quotes\)"),
    "Python's True": (b"[run]\nuse_gpu = True\n", r"line 2, column 11: .*\(write true\)"),
    "pasted quotes": ("[model]\nname = \u201cresnet20\u201d\n".encode(), "typographic quotation mark"),
    "a pasted space": ("[model]\nname\u00a0= 'resnet20'\n".encode(), "column 5 is a no-break space"),
    "old line ends": (TEXT.replace("\n", "\r").encode(), "save the file with Unix or Windows line ends"),
    "a key twice": (b"[model]\nname = 'resnet20'\nname = 'resnet32'\n", r"line 3, .*in: name = 'resnet32'"),
    "no text": (b"\x89PNG\r\n\x1a\n\0\0", "contains NUL bytes"),
}


@pytest.mark.parametrize(("content", "told"), REFUSED.values(), ids=REFUSED)
def test_it_is_refused_in_one_line(content: bytes, told: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=told):
        read_toml(file)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*: Is a directory"):
        read_toml(tmp_path)
