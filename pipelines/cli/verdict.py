"""Texts about a newly registered version: the verdict of the gate, and how to promote the version anyway."""

from __future__ import annotations

from pipelines.cli.next_command import command, home_option


def verdict(uri: str, *, champion: bool, reason: str) -> str:
    """Return one line: `registered as version 2, not champion: 250 test images are too few to rule out …`."""
    if champion:
        return f"champion: {reason}"
    return f"registered as version {_number(uri)}, not champion: {reason}"


def registered(uri: str, *, champion: bool, reason: str) -> str:
    """Return the text after `registered`: `models:/photos/2, not champion: 250 test images are too few to rule …`."""
    return f"{uri} (champion)" if champion else f"{uri}, not champion: {reason}"


def promote_command(uri: str, home: str) -> str:
    """Return the command that makes the version champion by hand."""
    return command("register", "--promote", uri.split("/")[1], _number(uri), *home_option(home))


def _number(uri: str) -> str:
    return uri.rpartition("/")[2]
