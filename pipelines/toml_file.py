"""TOML files of a user's, and what is wrong with them, in one line."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from infra.errors import UserError


def find_file(name: str, folder: Path) -> Path | None:
    """The file that `name` says, or the one of this stem in `folder`; None where there is none."""
    file = Path(name) if name.endswith(".toml") or "/" in name else folder / f"{name}.toml"
    return file if file.is_file() else None


def read_toml(file: Path) -> dict[str, Any]:
    """The tables of a file; UserError if it is no TOML."""
    try:
        return tomllib.loads(file.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not a TOML file: {error}") from error


def nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """A hint at the known word that is closest, with `prefix` in front of it; "" where none is close."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {prefix}{close[0]}?)" if close else ""


def _is_type(part: object) -> bool:
    """Whether a part of a place is what pydantic calls one of several types that a key may have."""
    return isinstance(part, str) and (part == "int" or part.startswith("tuple["))


def first_line(error: ValidationError) -> str:
    """The first thing that pydantic found: which key, what it must be, what it is."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if not _is_type(part))
    if first["type"] == "value_error":  # our own message names the key
        return str(first["ctx"]["error"])
    if first["type"] == "missing":
        return f"{where} is missing"
    return f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}"
