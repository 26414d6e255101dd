"""The main job in this process and with two workers: trained, resumed after a kill, recorded once, finished once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter

import psutil
import pytest
from mlflow import MlflowClient
from rich.console import Console
from safetensors.torch import save_file

from benchmarks.processes import is_train_worker
from infra.storage import open_store
from infra.tracking.tracker import resolve_tracking
from pipelines.checkpoint import FINISHED, RunFolder
from pipelines.config.recipe import load_recipe
from pipelines.data.order.ledger import Ledger
from pipelines.training.driver import train
from resnet_core.config import ModelConfig
from resnet_core.models import build_model

SMALL = {
    "schedule.length": 0.5,  # epochs: 2,000 images, 31 steps
    "schedule.warmup": 0,
    "data.image_size": 16,
    "run.log_every_steps": 5,
    "run.checkpoint_every_steps": 5,
    "run.register_as": "",
    "prepare.validation": 0,  # all 4,000 images train
}


@pytest.fixture
def recipe_of(tmp_path, tmp_path_factory, ray_local, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    data = tmp_path_factory.getbasetemp() / "mnist5k"  # prepared once for all tests here

    def make(**overrides):
        values = {key.replace("__", "."): value for key, value in overrides.items()}
        return load_recipe("mnist5k", {**SMALL, "data.uri": str(data), "run.home": str(tmp_path), **values})

    return make


def quiet():
    return Console(quiet=True)


def folder_of(recipe):
    return RunFolder(open_store(recipe.run.home).sub(recipe.run_name))


def points(recipe, key, run_id):
    tracking = resolve_tracking(recipe.run.home)
    return [point.step for point in MlflowClient(tracking.uri).get_metric_history(run_id, key)]


LOGGED = [5, 10, 15, 20, 25, 30, 31]


def test_local_mode_trains_and_a_finished_run_does_nothing(recipe_of):
    recipe = recipe_of(run__num_workers=0)
    outcome = train(recipe, quiet())
    assert outcome.step == 31
    assert points(recipe, "train/loss", outcome.run_id) == LOGGED
    assert points(recipe, "test/accuracy", outcome.run_id) == [31]
    checkpoint = folder_of(recipe).newest(pytest.fail)
    ledger = Ledger.from_arrays(checkpoint.ledger)
    assert {epoch: count.once for epoch, count in ledger.report().items()} == {0: 2000}
    assert checkpoint.scored["confusion"].sum() == 1000
    run = MlflowClient(resolve_tracking(recipe.run.home).uri).get_run(outcome.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["optim.lr_per_256"] == "0.4"
    assert run.inputs and run.inputs.dataset_inputs[0].dataset.digest == checkpoint.data_digest[:36]
    assert train(recipe, quiet()) == outcome


EVERYTHING = {
    "model__name": "resnet44",
    "model__drop_path": 0.1,
    "curriculum__until": [0.12, 0.3],  # epochs: steps 7 and 18
    "curriculum__image_size": [8, 12, 16],
    "curriculum__model": ["resnet20", "resnet32", "resnet44"],
    "optim__ema_decay": 0.9,
    "augment__flip": True,
    "augment__mixup_alpha": 0.2,
    "augment__cutmix_alpha": 1.0,
    "augment__erase_prob": 0.25,
    "augment__pixel_mean": True,
}


FINE_TUNING = {
    "model__init_from": "start.safetensors",
    "model__new_head": True,
    "model__freeze": "layer1",
    "optim__head_lr_factor": 10.0,
    "optim__layer_decay": 0.75,
    "optim__head_first": 0.21,  # epochs: 13 steps, so the run resumes while only the head trains
    "optim__ema_decay": 0.9,
    "run__eval_at": [0.1, 0.3, 0.4],  # epochs: steps 6, 18 and 25
    "schedule__early_stopping_patience": 1,
    "schedule__early_stopping_min_delta": 0.99,  # no progress after the first evaluation
}


CONTINUED = {
    "as it is": ({}, {}),
    "in the middle of a phase, everything on": (EVERYTHING, {}),
    "fine-tuning, up to an early stop": (FINE_TUNING, {}),
    "by default in the precision it began with": ({"compute__precision": "fp32"}, {"compute__precision": "auto"}),
}


@pytest.mark.parametrize(("settings", "later"), CONTINUED.values(), ids=CONTINUED)
def test_stopped_at_a_checkpoint_it_goes_on_bit_for_bit(recipe_of, tmp_path, monkeypatch, settings, later):
    monkeypatch.chdir(tmp_path)
    save_file(build_model(ModelConfig(name="resnet20", num_classes=1000)).state_dict(), "start.safetensors")
    whole = recipe_of(run__num_workers=0, run__name="whole", data__ordered=True, **settings)
    train(whole, quiet())
    broken = recipe_of(run__num_workers=0, run__name="broken", data__ordered=True, **settings)
    written = RunFolder.write

    def die_after_two(self, checkpoint, *, keep_best):
        written(self, checkpoint, keep_best=keep_best)
        if checkpoint.step == 10:
            raise OSError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write", die_after_two)
        with pytest.raises(Exception, match="power cut"):
            train(broken, quiet())
    broken = recipe_of(run__num_workers=0, run__name="broken", data__ordered=True, **settings | later)
    outcome = train(broken, quiet())
    expected, found = (folder_of(recipe).newest(pytest.fail).tensors for recipe in (whole, broken))
    assert (
        found.keys() == expected.keys() == {"model", "optimizer", *(["ema"] if "optim__ema_decay" in settings else [])}
    )
    for group, tensors in found.items():
        assert tensors.keys() == expected[group].keys()
        assert [name for name, tensor in tensors.items() if not tensor.equal(expected[group][name])] == []
    stopped = "schedule__early_stopping_patience" in settings
    assert points(broken, "train/loss", outcome.run_id) == ([5, 6, 10, 15, 18] if stopped else LOGGED)
    if stopped:
        assert outcome.stopped_early.startswith("at step 18 of 31: test accuracy has not risen by more than 0.99 in 1 ")
        assert train(broken, quiet()) == outcome
        (folder_of(broken).store.delete(FINISHED), train(broken, quiet()))  # killed before the end: nothing to train
        assert folder_of(broken).steps()[-1] == 18


@pytest.mark.faults
def test_two_workers_one_killed(recipe_of, tmp_path, monkeypatch):
    """Inside one fit(): Train starts the group again, and the stream goes on from the newest checkpoint.

    The weights to start from are named as the user's folder sees them, where no worker runs.
    """
    monkeypatch.chdir(tmp_path)
    save_file(build_model(ModelConfig(name="resnet20", num_classes=1000)).state_dict(), "start.safetensors")
    start = {"model__init_from": "start.safetensors", "model__new_head": True}
    recipe = recipe_of(run__num_workers=2, schedule__length=1, **start)
    killed: list[int] = []
    threading.Thread(target=kill_a_worker_after, args=(folder_of(recipe), 10, killed), daemon=True).start()
    outcome = train(recipe, quiet())
    assert killed, "the run ended before a worker could be killed"
    assert outcome.step == 62
    ledger = Ledger.from_arrays(folder_of(recipe).newest(pytest.fail).ledger)
    assert {epoch: (count.once, count.never) for epoch, count in ledger.report().items()} == {0: (4000, 0)}
    steps = points(recipe, "train/loss", outcome.run_id)
    assert Counter(steps) == Counter([*range(5, 61, 5), 62])
    assert steps == sorted(steps)


def kill_a_worker_after(folder, step, killed):
    """SIGKILL one Train worker of ours once a checkpoint of `step` or later is committed."""
    for _ in range(600):
        if any(done >= step for done in folder.steps()):
            break
        time.sleep(0.1)
    mine = psutil.Process().children(recursive=True)
    workers = [process.pid for process in mine if is_train_worker(process)]
    if workers:
        os.kill(workers[0], signal.SIGKILL)
        killed.append(workers[0])
