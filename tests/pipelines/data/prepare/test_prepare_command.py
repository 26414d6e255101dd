from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

from infra.errors import UserError
from pipelines import prepare


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """prepare.py in this process, on the Ray that the tests have started."""
    cluster = types.SimpleNamespace(connect=lambda **_: None)
    monkeypatch.setitem(sys.modules, "infra.cluster", cluster)  # type: ignore[arg-type]

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["prepare.py", *arguments])
        prepare.main()

    return run


@pytest.mark.usefixtures("ray_local")
def test_command_prepares_once_and_then_says_so(command, folder: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    dest = str(tmp_path / "out")
    command(str(folder), dest, "--set", "prepare.min_shards=2", "--set", "prepare.holdout=0.2")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "preparing image files in class folders of images (0.2 of each class held out)"
    assert lines[1].startswith("0 of 90 images, 0.0 MB")
    assert lines[-9].startswith("90 of 90 images")
    assert re.fullmatch(r"wrote at [\d,]+ images/s, [\d.]+ MB/s", lines[-8])
    assert lines[-2] == "odd images, read as RGB like all others: 1 PNG named JPEG"
    assert [line.split() for line in lines[-6:-2]] == [
        ["class", "train", "validation", "test"],
        ["a", "14", "2", "4"],
        ["b", "22", "2", "6"],
        ["c", "29", "3", "8"],
    ]
    assert lines[-7].split(": ", 1)[1].startswith("65 train, 7 validation, 18 test images of 3 classes in 6 shards, ")
    sizes = "--set data.image_size=22 --set data.eval_resize=22"  # the largest shorter side among the pictures
    next_line = f" my_small_images --set data.uri={dest} --set run.register_as=out {sizes}"
    assert lines[-1].startswith("next: ") and lines[-1].endswith(f"pipelines/train.py{next_line}")
    command(str(folder), dest, "--set", "prepare.min_shards=2", "--set", "prepare.holdout=0.2")
    again = capsys.readouterr().out.splitlines()
    assert again == [f"{dest} is already prepared: nothing to do", *lines[-7:]]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("prepare.qualty=80", r"unknown key prepare\.qualty \(did you mean prepare\.quality\?\)"),
        ("prepare.quality=101", r"prepare\.quality must be in 1\.\.100, got 101"),
        ("prepare.form=png", r"prepare\.form"),
        ("optim.momentum=0.5", r"--set optim\.momentum: prepare\.py takes keys of the section prepare only"),
    ],
)
def test_bad_settings_are_one_line_and_write_nothing(command, tmp_path: Path, setting: str, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=message):
        command("mnist5k", str(tmp_path / "out"), "--set", setting)
    assert not (tmp_path / "out").exists()
