"""Texts after the fields of a class: the meaning of each key, for messages and for docs/recipe-keys.md."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from functools import cache


@cache
def field_docs(section: type) -> dict[str, str]:
    """Return the text after each field in the source as one line, "" if there is none; base classes included."""
    found: dict[str, str] = {}
    for each in reversed(section.__mro__):
        if "__annotations__" in vars(each) and each.__module__.partition(".")[0] in (
            "pipelines",
            "infra",
            "resnet_core",
        ):
            found |= _own_docs(each)
    return found


def first_sentence(text: str) -> str:
    """Return the first sentence or clause of a text."""
    plain = re.sub(r" \([^)]*\)", "", text)
    return re.split(r"[.;:](?:\s|$)", plain, maxsplit=1)[0].strip()


def _own_docs(section: type) -> dict[str, str]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for statement, after in zip(definition.body, [*definition.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            found[statement.target.id] = _text(after)
    return found


def _text(statement: ast.stmt | None) -> str:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return " ".join(str(statement.value.value).split())
    return ""
