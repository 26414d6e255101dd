"""One-line error for two sets of named tensors that do not match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def refuse(faults: Mapping[str, Sequence[str]], *, shown: int) -> None:
    """Raise ValueError if there are faults: it lists at most `shown` names of each kind ("missing", …)."""
    lines = [_line(kind, names, shown) for kind, names in faults.items() if names]
    if lines:
        raise ValueError("; ".join(lines))


def _line(kind: str, names: Sequence[str], shown: int) -> str:
    rest = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{len(names)} {kind} tensor{'s' if len(names) > 1 else ''}: {', '.join(names[:shown])}{rest}"
