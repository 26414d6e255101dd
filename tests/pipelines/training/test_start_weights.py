"""`model.init_from`: what it takes, what a run pins of it, and one line for what it does not take."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save, save_file

from infra.errors import UserError
from infra.storage import open_store
from infra.tracking.client import Tracking
from pipelines.checkpoint import Checkpoint, RunFolder
from pipelines.config.recipe import Recipe, build_recipe
from pipelines.pretrained.facts import WeightFacts, warning_of
from pipelines.pretrained.hubs import published
from pipelines.training.build import build_state
from pipelines.training.start_weights import START, PinnedStart, find_start, share_start
from resnet_core.config import ModelConfig
from resnet_core.models import build_model
from tests.pipelines.pretrained.hub import Hub, serve_hub
from tests.pipelines.registered import Registry

CLASSES = 3
NOWHERE = Tracking(uri="http://127.0.0.1:9")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESNET_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub() as hub:
        yield hub


def network(seed: int = 0, classes: int = CLASSES) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return build_model(ModelConfig(name="resnet20", num_classes=classes)).state_dict()


def recipe_of(home: Path, start: Path | str, **keys: Any) -> Recipe:
    values = {key.replace("__", "."): value for key, value in keys.items()}
    fixed = {"model.name": "resnet20", "model.num_classes": CLASSES, "data.uri": "data", "run.name": "tuned"}
    return build_recipe({}, {**fixed, "run.home": str(home), "model.init_from": str(start), **values})


def found_by(recipe: Recipe, tracking: Tracking = NOWHERE) -> PinnedStart:
    start = find_start(recipe, recipe.model, folder_of(recipe), tracking, lambda line: None)
    assert start is not None
    return start


def folder_of(recipe: Recipe) -> RunFolder:
    return RunFolder(open_store(recipe.run.home).sub(recipe.run_name))


def started(recipe: Recipe, tracking: Tracking = NOWHERE) -> dict[str, torch.Tensor]:
    """The network of a worker, which reads what the driver has kept in the run's home."""
    kept = found_by(recipe, tracking).keep(folder_of(recipe), open_store(recipe.run.home))
    assert kept.uri.startswith(f"{recipe.run.home}/pretrained/")
    return build_state(recipe, torch.device("cpu"), 1, samples=100, start=kept).model.state_dict()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def same(some: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return some.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in some.items())


def run_with(
    folder: Path, accuracies: dict[int, float], averaged: bool = False, recipe: dict[str, Any] | None = None
) -> None:
    """A run that has saved a checkpoint at each of these steps, whose weights are those of that seed."""
    for step, accuracy in accuracies.items():
        files = {"model.safetensors": save(network(step))}
        if averaged:
            files["ema.safetensors"] = save(network(1000 + step))
        saved = Checkpoint(
            step=step, metrics={"test/accuracy": accuracy}, recipe=recipe or {}, data_digest="", files=files
        )
        RunFolder(open_store(str(folder))).write(saved, keep_best=1)


def test_a_run_gives_its_best_checkpoint(tmp_path: Path, home: Path) -> None:
    run_with(tmp_path / "run", {1: 0.5, 2: 0.9, 3: 0.7})
    assert same(started(recipe_of(home, tmp_path / "run")), network(2))
    assert same(started(recipe_of(home, f"{tmp_path}/run/")), network(2))


def test_averaged_weights_are_those_that_were_scored(tmp_path: Path, home: Path) -> None:
    run_with(tmp_path / "run", {1: 0.5}, averaged=True)
    assert same(started(recipe_of(home, tmp_path / "run")), network(1001))


def test_a_checkpoint_gives_its_own(tmp_path: Path, home: Path) -> None:
    run_with(tmp_path / "run", {1: 0.5, 2: 0.9, 3: 0.7})
    assert same(started(recipe_of(home, tmp_path / "run" / "checkpoints" / "step-00000003")), network(3))


WRAPPED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "bare": dict,
    "state_dict": lambda w: {"state_dict": w, "epoch": 3},
    "model": lambda w: {"model": w, "optimizer": {}, "args": Namespace(lr=0.1)},  # torchvision's training script
    "model_state": lambda w: {"model_state": w},
    "DistributedDataParallel": lambda w: {"state_dict": {f"module.{name}": tensor for name, tensor in w.items()}},
    "compiled": lambda w: {f"module._orig_mod.{name}": tensor for name, tensor in w.items()},
    "Lightning": lambda w: {"state_dict": {f"model.{name}": tensor for name, tensor in w.items()}},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pytorch_file_is_read_with_its_wrappers(tmp_path: Path, home: Path, wrap, zipped: bool) -> None:
    torch.save(wrap(dict(network(5))), tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    assert same(started(recipe_of(home, tmp_path / "w.pt")), network(5))


def test_names_from_distributed_data_parallel(tmp_path: Path, home: Path) -> None:
    save_file({f"module.{name}": tensor for name, tensor in network(5).items()}, tmp_path / "w.safetensors")
    assert same(started(recipe_of(home, tmp_path / "w.safetensors")), network(5))


def test_a_url_gives_its_file(tmp_path: Path, home: Path, hub: Hub) -> None:
    torch.save(network(5), tmp_path / "w.pth")
    hub.files["/w.pth"] = (tmp_path / "w.pth").read_bytes()
    assert same(started(recipe_of(home, f"{hub.url}/w.pth")), network(5))


def test_torchvisions_file_gives_torchvisions_logits(tmp_path: Path, home: Path) -> None:
    torch.manual_seed(3)
    theirs = torchvision.models.resnet50(num_classes=1000).eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet50-00000000.pth")
    recipe = recipe_of(home, tmp_path / "resnet50-00000000.pth", model__name="resnet50", model__num_classes=1000)
    ours = build_model(recipe.model)
    ours.load_state_dict(started(recipe))
    images = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(images), theirs(images), atol=1e-5, rtol=1e-5)


def test_a_registered_model_gives_its_weights_and_its_preprocessing(
    home: Path, registry: Registry, weights: dict[str, torch.Tensor]
) -> None:
    registry.champion_is(registry.first)
    recipe = recipe_of(home, registry.uri, augment__mean=[0.5, 0.5, 0.5])
    found = started(recipe, registry.tracking)
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items() if "num_batches" not in name)
    start = found_by(recipe_of(home, registry.uri, run__name="other", augment__mean=[0.5] * 3), registry.tracking)
    assert start.origin == registry.first.uri
    assert "augment.mean = [0.485, 0.456, 0.406" in start.warning
    assert same(started(recipe), found)  # pinned: neither MLflow nor the alias is asked again


def test_other_classes_need_a_new_head(tmp_path: Path, home: Path) -> None:
    save_file(network(5, classes=7), tmp_path / "w.safetensors")
    message = r"w\.safetensors was trained on 7 classes, and the data set has 3: set model\.new_head = true"
    with pytest.raises(UserError, match=message):
        found_by(recipe_of(home, tmp_path / "w.safetensors"))
    loaded = started(recipe_of(home, tmp_path / "w.safetensors", model__new_head=True))
    assert torch.equal(loaded["conv1.weight"], network(5, classes=7)["conv1.weight"])
    assert loaded["fc.weight"].shape[0] == CLASSES


def test_a_run_keeps_its_weights_when_its_url_is_gone(tmp_path: Path, home: Path, hub: Hub) -> None:
    hub.files["/w.safetensors"] = save(network(5))
    recipe = recipe_of(home, f"{hub.url}/w.safetensors")
    started(recipe)
    hub.files.clear()
    (cached,) = (tmp_path / "cache" / "pretrained").iterdir()
    cached.unlink()
    assert same(started(recipe), network(5))
    assert same(started(recipe_of(home, f"{hub.url}/w.safetensors", run__name="trial")), network(5))


def test_a_study_downloads_once_for_its_trials(tmp_path: Path, home: Path, hub: Hub, monkeypatch) -> None:
    """Trials run on other nodes, whose caches are empty."""
    hub.files["/w.safetensors"] = save(network(5))
    share_start(f"{hub.url}/w.safetensors", open_store(str(home)), lambda line: None)
    hub.files.clear()
    monkeypatch.setenv("RESNET_RAY_CACHE", str(tmp_path / "other node"))
    assert same(started(recipe_of(home, f"{hub.url}/w.safetensors")), network(5))


def test_a_file_that_changed_since_the_run_began_is_told(tmp_path: Path, home: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file(network(5), file)
    recipe = recipe_of(home, file)
    started(recipe)
    assert folder_of(recipe).read_json(START) is not None
    save_file(network(6), file)
    with pytest.raises(UserError, match=r"w\.safetensors has changed since run tuned began: its sha256 was .*…, now "):
        found_by(recipe)
    file.unlink()
    assert same(started(recipe), network(5))
    (copy,) = (home / "pretrained").iterdir()
    copy.write_bytes(copy.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match=r"model\.init_from: there is no "):
        found_by(recipe)
    save_file(network(6), file)
    with pytest.raises(UserError, match=r"has changed since run tuned began"):
        found_by(recipe)


def test_a_worker_refuses_a_copy_that_is_not_what_was_saved(tmp_path: Path, home: Path) -> None:
    save_file(network(5), tmp_path / "w.safetensors")
    recipe = recipe_of(home, tmp_path / "w.safetensors")
    kept = found_by(recipe).keep(folder_of(recipe), open_store(recipe.run.home))
    Path(kept.uri).write_bytes(save(network(6)))
    with pytest.raises(UserError, match="is not what was saved: its sha256 disagrees"):
        build_state(recipe, torch.device("cpu"), 1, samples=100, start=kept)


class Code:
    """Runs a command when it is unpickled without care."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch /tmp/resnet-ray-was-here",)


def folder_of_others(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").touch()


def cut(path: Path) -> None:
    torch.save(network(), path)
    path.write_bytes(path.read_bytes()[:-1000])


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "code": (lambda path: torch.save({"state_dict": Code()}, path), r"holds Python code \(posix\.system\), which is not run"),  # noqa: E501
    "old code": (
        lambda path: torch.save({"state_dict": Code()}, path, _use_new_zipfile_serialization=False),
        r"holds Python code \(posix\.system\), which is not run",
    ),
    "whole module": (lambda path: torch.save(torch.nn.Linear(2, 2), path), r"holds Python code \(torch\.nn\.modules\.linear\.Linear\)"),  # noqa: E501
    "cut PyTorch file": (cut, r"is damaged, or is not a PyTorch file: download or copy it again"),
    "cut old PyTorch file": (lambda path: path.write_bytes(b"\x80\x02ab"), r"is damaged, or is not a PyTorch file"),
    "other archive": (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)), r"is damaged, or is not a PyTorch file"),  # noqa: E501
    "no state_dict": (lambda path: torch.save({"epoch": 3, "lr": 0.1}, path), r"holds no state_dict: epoch, lr are not tensors"),  # noqa: E501
    "a list": (lambda path: torch.save([1], path), r"holds no state_dict, but list"),
    "web page": (lambda path: path.write_text("\n<!DOCTYPE html><html>"), "is a web page, and not the file"),
    "LFS": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "empty": (lambda path: path.write_bytes(b""), "is not a safetensors file"),
    "cut": (lambda path: path.write_bytes(save(network())[:-100]), "is not a safetensors file"),
    "absent": (lambda path: None, r"model\.init_from: there is no "),
    "empty folder": (lambda path: path.mkdir(), r"model\.init_from: there is no "),
    "folder": (folder_of_others, "without a checkpoint"),
    "below a file": (lambda path: path.parent.joinpath("file").touch(), r"there is no "),
    "other width": (
        lambda path: save_file(build_model("resnet18", num_classes=CLASSES).state_dict(), path),
        r"does not fit resnet20: .*unexpected .*layer4",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "told"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_such_file_is_told_in_a_line(
    tmp_path: Path, home: Path, make: Callable[[Path], object], told: str, request: pytest.FixtureRequest
) -> None:
    start = tmp_path / "start.pth"
    make(start)
    if "below" in request.node.name:
        start = tmp_path / "file" / "start.pth"
    with pytest.raises(UserError, match=told) as caught:
        found_by(recipe_of(home, start))
    assert str(caught.value).startswith("model.init_from: ")
    assert not home.exists()
    assert not Path("/tmp/resnet-ray-was-here").exists()


def test_a_damaged_run_is_told(tmp_path: Path, home: Path) -> None:
    run_with(tmp_path / "run", {1: 0.5})
    (tmp_path / "run" / "checkpoints" / "step-00000001" / "model.safetensors").write_bytes(b"?")
    with pytest.raises(UserError, match=r"model\.init_from: .*model\.safetensors is not what was saved"):
        found_by(recipe_of(home, tmp_path / "run"))


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ({"name": "resnet18"}, "are weights of resnet50, and model.name is resnet18: set model.name=resnet50"),
        ({"name": "resnet50", "stride_on": "1x1"}, "with stride_on 3x3, and the recipe has 1x1"),
        ({"name": "resnet50", "activation": "silu"}, "with activation relu, and the recipe has silu"),
        ({"name": "resnet50d"}, r"and the recipe has deep: set model\.name=resnet50"),
    ],
)
def test_weights_of_another_network_name_the_key_to_change(model: dict[str, Any], told: str) -> None:
    facts = published("torchvision://resnet50/IMAGENET1K_V2").facts
    assert facts is not None
    with pytest.raises(UserError, match=told):
        facts.check_network(ModelConfig(num_classes=3, **model), "w")
    facts.check_network(ModelConfig(name="resnet50", num_classes=3), "w")


def test_other_preprocessing_is_a_warning_with_the_settings_to_paste(home: Path) -> None:
    facts = published("torchvision://resnet50/IMAGENET1K_V2").facts
    assert facts is not None
    recipe = recipe_of(home, "w", data__image_size=224, data__eval_resize=256, augment__std=[0.5, 0.5, 0.5])
    assert warning_of(facts, recipe, "w") == (
        "warning: w was trained with augment.std = [0.229, 0.224, 0.225], data.eval_resize = 232; the recipe has "
        "[0.5, 0.5, 0.5], 256. To use the weights' values: --set augment.std=[0.229,0.224,0.225] "
        "--set data.eval_resize=232"
    )
    fits = recipe_of(home, "w", data__image_size=224, data__eval_resize=232)
    assert warning_of(facts, fits, "w") == ""


def test_facts_of_timm_name_our_networks() -> None:
    given = {"architecture": "resnetv2_50", "pretrained_cfg": {"input_size": [3, 224, 224], "crop_pct": 0.95}}
    facts = WeightFacts.of_timm(given)
    facts.check_network(ModelConfig(name="resnet50", block_order="pre", num_classes=3), "w")
    assert (facts.network, facts.image_size, facts.eval_resize) == ("resnet50", 224, 235)
    assert WeightFacts.of_timm({"model_type": "resnet"}).variant is None


def test_a_run_with_another_network_names_the_depths(tmp_path: Path, home: Path) -> None:
    own = {"model.name": "resnet20", "model.depths": [1, 1, 1], "augment.mean": [0.1, 0.1, 0.1]}
    run_with(tmp_path / "run", {1: 0.5}, recipe=own)
    with pytest.raises(
        UserError, match=r"weights of resnet20, and model\.name is resnet20: set model\.depths=\[1, 1, 1\]"
    ):
        found_by(recipe_of(home, tmp_path / "run"))
