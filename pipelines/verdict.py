"""What the user reads of a version that was just registered: what the gate said, and how to promote it all the same."""

from __future__ import annotations

from pipelines.next_command import command, home_option


def verdict(uri: str, *, champion: bool, reason: str) -> str:
    """One line: `registered as version 2, not champion: 250 test images are too few to rule out …`."""
    if champion:
        return f"champion: {reason}"
    return f"registered as version {_number(uri)}, not champion: {reason}"


def registered(uri: str, *, champion: bool, reason: str) -> str:
    """The same after `registered`: `models:/photos/2, not champion: 250 test images are too few to rule out …`."""
    return f"{uri} (champion)" if champion else f"{uri}, not champion: {reason}"


def promote_command(uri: str, home: str) -> str:
    """The command that makes the version champion by hand."""
    return command("register", "--promote", uri.split("/")[1], _number(uri), *home_option(home))


def _number(uri: str) -> str:
    return uri.rpartition("/")[2]
