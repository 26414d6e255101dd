"""What does not fit between two sets of named tensors, told in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def refuse(faults: Mapping[str, Sequence[str]], *, shown: int) -> None:
    """ValueError with the names by kind of fault ("missing", …), at most `shown` of each, if there are any."""
    lines = [_line(kind, names, shown) for kind, names in faults.items() if names]
    if lines:
        raise ValueError("; ".join(lines))


def _line(kind: str, names: Sequence[str], shown: int) -> str:
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{len(names)} {kind} tensor{'s' if len(names) > 1 else ''}: {', '.join(names[:shown])}{rest}"
