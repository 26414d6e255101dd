"""Read the TOML files of users: recipes, spaces and suites. An error explains the problem in one line."""

from __future__ import annotations

import codecs
import re
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from infra.errors import UserError
from infra.nearest import nearest

_MARKS = {
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),  # before UTF-16, whose mark is the start of UTF-32's
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
_PASTED = {"\u00a0": "a no-break space", "\u200b": "a zero-width space", "\ufeff": "a byte-order mark"} | dict.fromkeys(
    "\u201c\u201d\u201e\u2018\u2019", "a typographic quotation mark: TOML takes \" and '"
)
_WORD = re.compile(r"[A-Za-z_./~-][\w./~:@-]*\s*(#.*)?")
_PLACE = re.compile(r"^(.*) \(at line (\d+), column (\d+)\)$", re.DOTALL)
_LINE_CHARS = 80
_FEW = 12  # most names that a message lists


def find_file(name: str, folder: Path) -> Path | None:
    """Return the file at path `name`, or the file with this stem in `folder`; None if there is none."""
    file = Path(name) if name.endswith(".toml") or "/" in name else folder / f"{name}.toml"
    return file if file.is_file() else None


def read_toml(file: Path) -> dict[str, Any]:
    """Return the tables of a file.

    Raises:
        UserError: the file cannot be read, is not UTF-8 text, or is not TOML.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    text = _decoded(file, content)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{file}: not a TOML file: {_explained(str(error), text)}") from error


def first_line(error: ValidationError) -> str:
    """Return the first problem that pydantic found: the key, what it must be, and its value."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if not _is_type(part))
    if first["type"] == "value_error":  # the message of our own check names the key
        return str(first["ctx"]["error"])
    if first["type"] == "missing":
        return f"{where} is missing"
    message = f"{first['msg'][0].lower()}{first['msg'][1:]}"
    if first["type"] == "bool_type" and first["input"] in ("True", "False"):
        message += f" (write {first['input'].lower()})"
    if first["type"] != "literal_error":
        return f"{where}: {message}, got {first['input']!r}"
    names = re.findall(r"'([^']*)'", first["ctx"]["expected"])
    if len(names) > _FEW:
        message = f"must be one of {len(names)} names (docs/recipe-keys.md)"
    return f"{where}: {message}, got {first['input']!r}{nearest(str(first['input']), filter(None, names))}"


def _decoded(file: Path, content: bytes) -> str:
    for name, marks in _MARKS.items():
        if content.startswith(marks):
            raise UserError(f"{file} is {name} text: save it as UTF-8")
    if b"\0" in content:
        raise UserError(f"{file} contains NUL bytes, so it is UTF-16 or not text: save it as UTF-8")
    content = content.removeprefix(codecs.BOM_UTF8)  # Windows editors write this mark
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = content[error.start]
        raise UserError(f"{file}: line {line}: byte 0x{byte:02x} is not UTF-8 (Latin-1?): save it as UTF-8") from error


def _explained(message: str, text: str) -> str:
    """Return tomllib's message with the line that it means and, if known, what to do."""
    place = _PLACE.match(message)
    if place is None:
        return message
    what, number, column = place[1], int(place[2]), int(place[3])
    lines = text.replace("\r\n", "\n").split("\n")
    line = lines[number - 1] if number <= len(lines) else ""
    return f"line {number}, column {column}: {what}, in: {line.strip()[:_LINE_CHARS]}{_remedy(what, line, column)}"


def _remedy(what: str, line: str, column: int) -> str:
    if "\r" in line:
        return ' (lines end with "\\r": save the file with Unix or Windows line ends)'
    for character, name in _PASTED.items():
        if character in line:
            return f" (column {line.index(character) + 1} is {name})"
    value = line[column - 1 :].strip()
    if value in ("True", "False"):
        return f" (write {value.lower()})"
    if what == "Invalid value" and _WORD.fullmatch(value):
        return " (text needs quotes)"
    return ""


def _is_type(part: object) -> bool:
    """Return True if a part of a location is pydantic's name for one of several types that the key may have."""
    return isinstance(part, str) and (part in ("int", "bool") or part.startswith(("tuple[", "literal[")))
