"""`model.init_from`: what it takes, and one line for what it does not."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save, save_file

from infra.errors import UserError
from infra.storage import open_store
from pipelines.checkpoint import Checkpoint, RunFolder
from pipelines.training.start_weights import check_start, load_start, start_uri
from resnet_core.config import ModelConfig
from resnet_core.models import build_model

ROOT = Path(__file__).parents[3]
CLASSES = 3


def network(seed: int = 0, classes: int = CLASSES) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return build_model(ModelConfig(name="resnet20", num_classes=classes)).state_dict()


def config(start: Path | str, **keys: Any) -> ModelConfig:
    return ModelConfig(name="resnet20", num_classes=CLASSES, init_from=str(start), **keys)


def started(start: Path | str, **keys: Any) -> dict[str, torch.Tensor]:
    """The network after it took the weights."""
    wanted = config(start, **keys)
    check_start(wanted)
    model = build_model(wanted)
    load_start(model, wanted, start_uri(wanted))
    return model.state_dict()


def same(some: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return some.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in some.items())


def run_with(folder: Path, accuracies: dict[int, float], averaged: bool = False) -> None:
    """A run that has saved a checkpoint at each of these steps, whose weights are those of that seed."""
    for step, accuracy in accuracies.items():
        files = {"model.safetensors": save(network(step))}
        if averaged:
            files["ema.safetensors"] = save(network(1000 + step))
        saved = Checkpoint(step=step, metrics={"test/accuracy": accuracy}, recipe={}, data_digest="", files=files)
        RunFolder(open_store(str(folder))).write(saved, keep_best=1)


def test_a_run_gives_its_best_checkpoint(tmp_path: Path) -> None:
    run_with(tmp_path / "run", {1: 0.5, 2: 0.9, 3: 0.7})
    assert same(started(tmp_path / "run"), network(2))
    assert same(started(f"{tmp_path}/run/"), network(2))


def test_averaged_weights_are_those_that_were_scored(tmp_path: Path) -> None:
    run_with(tmp_path / "run", {1: 0.5}, averaged=True)
    assert same(started(tmp_path / "run"), network(1001))


def test_a_checkpoint_gives_its_own(tmp_path: Path) -> None:
    run_with(tmp_path / "run", {1: 0.5, 2: 0.9, 3: 0.7})
    assert same(started(tmp_path / "run" / "checkpoints" / "step-00000003"), network(3))


def test_names_from_distributed_data_parallel(tmp_path: Path) -> None:
    save_file({f"module.{name}": tensor for name, tensor in network(5).items()}, tmp_path / "w.safetensors")
    assert same(started(tmp_path / "w.safetensors"), network(5))


def test_other_classes_need_a_new_head(tmp_path: Path) -> None:
    save_file(network(5, classes=7), tmp_path / "w.safetensors")
    message = r"w\.safetensors was trained on 7 classes, and the data set has 3: set model\.new_head = true"
    with pytest.raises(UserError, match=message):
        check_start(config(tmp_path / "w.safetensors"))
    loaded = started(tmp_path / "w.safetensors", new_head=True)
    assert torch.equal(loaded["conv1.weight"], network(5, classes=7)["conv1.weight"])
    assert loaded["fc.weight"].shape[0] == CLASSES


def pickled(path: Path) -> None:
    torch.save(network(), path)


def pickled_as_before(path: Path) -> None:
    torch.save(network(), path, _use_new_zipfile_serialization=False)


def folder_of_others(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").touch()


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (pickled, r'is a PyTorch pickle, .* docs/recipes\.md, "Weights from a \.pth file"'),
    "older pickle": (pickled_as_before, "is a PyTorch pickle, "),
    "web page": (lambda path: path.write_text("\n<!DOCTYPE html><html>"), "is a web page, and not the file"),
    "LFS": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "empty": (lambda path: path.write_bytes(b""), "is not a safetensors file"),
    "cut": (lambda path: path.write_bytes(save(network())[:-100]), "is not a safetensors file"),
    "absent": (lambda path: None, r"model\.init_from: there is no "),
    "empty folder": (lambda path: path.mkdir(), r"model\.init_from: there is no "),
    "folder": (folder_of_others, "without a checkpoint"),
    "below a file": (lambda path: path.parent.joinpath("file").touch(), r"there is no "),
}


@pytest.mark.parametrize(("make", "told"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_such_file_is_told_in_a_line(
    tmp_path: Path, make: Callable[[Path], object], told: str, request: pytest.FixtureRequest
) -> None:
    start = tmp_path / "start.pth"
    make(start)
    if "below" in request.node.name:
        start = tmp_path / "file" / "start.pth"
    with pytest.raises(UserError, match=told) as caught:
        check_start(config(start))
    assert str(caught.value).startswith("model.init_from: ")


def test_a_damaged_run_is_told(tmp_path: Path) -> None:
    run_with(tmp_path / "run", {1: 0.5})
    (tmp_path / "run" / "checkpoints" / "step-00000001" / "model.safetensors").write_bytes(b"?")
    with pytest.raises(UserError, match=r"model\.init_from: .*model\.safetensors is not what was saved"):
        check_start(config(tmp_path / "run"))


@pytest.mark.parametrize("wrap", [dict, lambda w: {"state_dict": w, "epoch": 3}, lambda w: {"model": w}])
def test_the_documented_command_converts(tmp_path: Path, wrap: Callable[[dict[str, Any]], Any]) -> None:
    (command,) = re.findall(r"```bash\n\.venv/bin/(python -c '.*?') \S+ \S+\n```", PAGE, re.DOTALL)
    code = command.removeprefix("python -c '").removesuffix("'")
    torch.save(wrap({f"module.{name}": tensor for name, tensor in network(5).items()}), tmp_path / "w.pth")
    paths = [str(tmp_path / "w.pth"), str(tmp_path / "w.safetensors")]
    subprocess.run([sys.executable, "-c", code, *paths], check=True)
    assert same(load((tmp_path / "w.safetensors").read_bytes()), network(5))
    assert same(started(tmp_path / "w.safetensors"), network(5))


PAGE = (ROOT / "docs" / "recipes.md").read_text()
