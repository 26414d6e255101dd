"""Find the known name that a mistyped one most likely means."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher
from itertools import takewhile

_LEAST_RATIO = 0.66  # share of letters that two words have in common
_LEAST_CHARACTERS = 3  # shortest word that may match the start or a part of a longer name


def closest(word: str, known: Iterable[str]) -> str:
    """Return the known name closest to `word` (same letters, same start, same part, or similar spelling), or ""."""
    plain: dict[str, str] = {}
    for name in known:
        plain.setdefault(_plain(name), name)
    asked = _plain(word)
    if asked in plain:
        return plain[asked]
    if len(asked) >= _LEAST_CHARACTERS:
        begins = [name for name in plain if name.startswith(asked)]
        if begins:
            return plain[min(begins, key=len)]
        parts = [name for name in plain.values() if word.lower() in name.split("_")]
        if len(parts) == 1:
            return parts[0]
    alike = [(SequenceMatcher(None, asked, name).ratio(), _shared(asked, name), name) for name in plain]
    ratio, _, name = max(alike, default=(0.0, 0, ""))
    return plain[name] if ratio >= _LEAST_RATIO else ""


def nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Return a hint such as " (did you mean resnet50?)", with `prefix` before the name; "" if none is close."""
    name = closest(word, known)
    return f" (did you mean {prefix}{name}?)" if name else ""


def _shared(one: str, other: str) -> int:
    """Return how many leading letters two words share."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _plain(name: str) -> str:
    """Return letters and digits in lower case, so that ResNet-50 and resnet_50 are one name."""
    return "".join(character for character in name.lower() if character.isalnum())
