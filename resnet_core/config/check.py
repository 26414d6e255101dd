"""How a section refuses a value: ValueError naming its field as the recipe spells it, e.g. `optim.momentum`."""

from __future__ import annotations

from typing import get_args


def require(holds: bool, field: str, rule: str, value: object) -> None:
    """ValueError unless `holds`."""
    if not holds:
        raise ValueError(f"{field} must be {rule}: got {value!r}")


def require_choice(field: str, value: object, choices: object) -> None:
    """ValueError unless `value` is one of a Literal's names."""
    names = get_args(choices)
    require(value in names, field, f"one of {', '.join(names)}", value)
