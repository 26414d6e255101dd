"""What the pages name is there: files, links, and the places where somebody extends the project."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
FOLDERS = ("pipelines", "infra", "resnet_core", "tests", "benchmarks", "docs")
MOST_WORDS = 1000
MOST_STEPS = 12
MOST_TERMS = 25


def section(text: str, heading: str) -> str:
    """The text below a heading, up to the next one."""
    return re.split(rf"^## {re.escape(heading)}.*$", text, maxsplit=1, flags=re.MULTILINE)[1].split("\n## ")[0]


def paths_in(text: str) -> list[str]:
    """Files and folders of this project that a text names in code style."""
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)`", text)
    return [path for path in named if "NAME" not in path]


def id_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= MOST_WORDS


def test_every_place_of_extending_can_be_imported() -> None:
    places = paths_in(section((ROOT / "README.md").read_text(), "Extending"))
    assert len(places) > 7
    for place in places:
        path = ROOT / place
        assert path.exists(), place
        if place.startswith("docs/"):
            continue
        importlib.import_module(place.removesuffix(".py").removesuffix("/").replace("/", ".").removesuffix(".__init__"))


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_links_lead_somewhere(page: Path) -> None:
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text())]
    local = [link for link in links if link and "://" not in link and not link.startswith("mailto:")]
    assert [link for link in local if not (page.parent / link).exists()] == []


# The log tells of files as they were.
@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "log.md"], ids=id_of)
def test_files_that_are_named_are_there(page: Path) -> None:
    assert [path for path in paths_in(page.read_text()) if not (ROOT / path).exists()] == []


def test_each_walk_of_the_architecture_names_files_in_few_lines() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    walks = {heading: section(text, heading) for heading in re.findall(r"^## (A .*)$", text, re.MULTILINE)}
    assert len(walks) == 4
    for heading, walk in walks.items():
        steps = re.findall(r"^\d+\. ", walk, re.MULTILINE)
        assert 1 < len(steps) <= MOST_STEPS, heading
        assert len(paths_in(walk)) >= len(steps) - 1, heading


def test_the_glossary_is_short_and_names_each_word_once() -> None:
    rows = re.findall(r"^\| ([a-z -]+) \|", (ROOT / "docs/glossary.md").read_text(), re.MULTILINE)
    words = [row for row in rows if row not in ("word", "---")]
    assert len(words) == len(set(words)) <= MOST_TERMS
