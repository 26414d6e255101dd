"""Checks of a section's values: a ValueError names the field as the recipe spells it, such as `optim.momentum`."""

from __future__ import annotations

from typing import get_args


def require(holds: bool, field: str, rule: str, value: object) -> None:
    """Raise ValueError unless `holds`; `rule` completes "FIELD must be ..."."""
    if not holds:
        raise ValueError(f"{field} must be {rule}: got {value!r}")


def require_choice(field: str, value: object, choices: object) -> None:
    """Raise ValueError unless `value` is one of the values of the Literal type `choices`."""
    names = get_args(choices)
    require(value in names, field, f"one of {', '.join(names)}", value)
