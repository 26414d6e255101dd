"""Inference asks Ray for a GPU where the cluster has one; where it has none, nothing asks, and the digits stay."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from infra import capacity
from infra.capacity import NodeType
from infra.errors import UserError
from infra.registry.versions import fetch
from infra.storage import LocalStore
from infra.tracking.address import sqlite_uri
from infra.tracking.client import Tracking
from infra.tracking.tracker import RunInfo, Tracker
from pipelines.checkpoint import RUN, RunFolder
from pipelines.evaluation import placement as inference
from pipelines.evaluation.classifier import ServedClassifier
from pipelines.evaluation.model_source import Ensemble, RunModel, VersionModel
from pipelines.evaluation.placement import HERE, ON_CPU, ON_GPU, InferencePlacement, Resources, choose, compute
from pipelines.evaluation.result import evaluate, evaluate_split
from tests.pipelines.conftest import COLOURS, SIZE, Coloured, hand_computed, picture
from tests.pipelines.logical_gpus import PRETEND
from tests.pipelines.registered import Registry

ROOT = Path(__file__).parents[3]


def gpus(monkeypatch: pytest.MonkeyPatch, count: int, *, initialized: bool = True) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: initialized)
    monkeypatch.setattr(inference, "cluster_total", lambda kind: count if kind == "GPU" else 4)
    monkeypatch.setattr(inference, "unknown_may_come", lambda: False)
    monkeypatch.setattr(inference, "_free_gpus", lambda: min(count, 3))


@pytest.mark.parametrize(
    ("use_gpu", "count", "copies", "gpu", "told"),
    [
        ("auto", 0, 1, False, "CPUs"),
        ("auto", 1, 1, True, "1 GPU"),
        ("auto", 4, 3, True, "3 GPUs"),
        ("auto", 2, 3, False, "CPUs (3 GPUs are needed, the cluster has 2)"),
        (False, 2, 1, False, "CPUs (--use-gpu=false leaves 2 GPUs unused)"),
        (False, 0, 1, False, "CPUs"),
        (True, 2, 2, True, "2 GPUs"),
        (True, 8, 4, True, "4 GPUs, once there are free ones"),
    ],
)
def test_what_is_taken_and_what_is_left_is_told(
    use_gpu: Any, count: int, copies: int, gpu: bool, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, count)
    choice = choose(use_gpu, copies=copies)
    assert (choice.gpu, choice.description) == (gpu, told)
    assert choice.options["num_gpus"] == int(gpu)
    assert choice.limit == (ON_GPU if gpu else ON_CPU)


@pytest.mark.parametrize(
    ("count", "copies", "line"),
    [
        (
            0,
            1,
            "--use-gpu=true needs 1 GPU and the cluster has none: set --use-gpu=auto, or set RAY_ADDRESS to",
        ),
        (2, 3, "--use-gpu=true needs 3 GPUs and the cluster has 2: set --use-gpu=auto, or lower --replicas"),
    ],
)
def test_gpus_that_are_asked_for_and_are_not_there_are_one_line(
    count: int, copies: int, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, count)
    with pytest.raises(UserError) as error:
        choose(True, copies=copies)
    assert str(error.value).startswith(line)


def test_nodes_that_may_come_count_as_gpus_that_are_there(ray_local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not choose("auto").gpu
    coming = NodeType(most=3, resources={"CPU": 16, "GPU": 1}, labels={})
    monkeypatch.setattr(capacity, "node_types", lambda: (coming,))
    assert choose("auto", copies=3).gpu and not choose("auto", copies=4).gpu


def test_without_ray_models_compute_on_the_cpus_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 8, initialized=False)
    assert choose("auto").description == "CPUs"
    with pytest.raises(UserError, match="--use-gpu=true needs 1 GPU"):
        choose(True)


def whereabouts(on: Resources) -> dict[str, Any]:
    import ray
    import torch

    context = ray.get_runtime_context()
    held = context.get_assigned_resources() if context.get_task_id() else {}
    return {"pid": os.getpid(), "threads": torch.get_num_threads(), "held": held, "on": on}


def test_a_driver_that_started_its_own_ray_computes_itself(ray_local: None) -> None:
    assert compute(HERE, whereabouts)["pid"] == os.getpid()


def test_on_a_cluster_the_driver_computes_nothing(ray_local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs on the head, whose Ray exports OMP_NUM_THREADS=1."""
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    found = compute(HERE, whereabouts)
    assert found["pid"] != os.getpid()
    assert (found["threads"], found["held"]) == (2, {"CPU": 2.0})  # half of a node with four
    assert found["on"] == Resources(device="cpu", limit=ON_CPU, tasks=3)


def out_of_memory(on: Resources) -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")


def refused(on: Resources) -> None:
    raise UserError("an image does not decode")


def test_errors_of_the_task_are_one_line(ray_local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(UserError, match=r"^an image does not decode$"):
        compute(HERE, refused)


def test_a_gpu_that_is_too_small_is_one_line(ray_local: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "gpu_device", lambda setting: "cpu")
    with pytest.raises(UserError, match=r"the GPU has too little memory \(CUDA out of memory.*--use-gpu=false"):
        inference._task(InferencePlacement(gpu=True), 0, out_of_memory, (), {})


def test_a_task_answers_as_this_process_does(
    ray_local: None,
    colours: Coloured,
    weights: Any,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Checkpoints and registered versions go to workers as data; every image has the same answer there."""
    checkpoint = colours.checkpoint(weights, {})
    expected = evaluate_split(ServedClassifier.from_checkpoint(checkpoint).predict, colours.data)
    version = VersionModel(files=fetch(registry.tracking, registry.first.uri))
    both = Ensemble(members=(RunModel.of(checkpoint), version))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody is there
    for model in (RunModel.of(checkpoint), version, both):
        found = evaluate(HERE, model, colours.data)
        assert found.predictions.id.tolist() == expected.predictions.id.tolist()
        np.testing.assert_array_equal(found.predictions.predicted, expected.predictions.predicted)
        np.testing.assert_allclose(found.predictions.probability, expected.predictions.probability, atol=1e-6)
        assert found.score.loss == pytest.approx(expected.score.loss, abs=1e-5)


def test_a_checkpoint_goes_without_what_only_training_needs(colours: Coloured, weights: Any) -> None:
    import dataclasses

    whole = colours.checkpoint(weights, {})
    files = {**whole.files, "optimizer.safetensors": b"x" * 1000, "records.jsonl": b""}
    assert set(RunModel.of(dataclasses.replace(whole, files=files)).checkpoint.files) == {"model.safetensors"}


@pytest.fixture
def album(tmp_path: Path) -> Path:
    folder = tmp_path / "album"
    folder.mkdir()
    for place in range(30):
        picture(list(COLOURS.values())[place % 3], place).save(folder / f"{place:02d}.png")
    (folder / "bad.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def run_folder(colours: Coloured, weights: Any, tmp_path: Path) -> Path:
    """A finished run whose checkpoint is not registered yet; its recipe names the home of the data set."""
    tracker = Tracker.start(
        Tracking(uri=sqlite_uri(Path(colours.store.uri).parent / "mlflow.db")),
        RunInfo(experiment="colours", name="demo"),
        warn=print,
    )
    assert tracker.finish("FINISHED", timeout_s=30)
    folder = RunFolder(LocalStore(uri=str(tmp_path / "run")))
    folder.write_json(RUN, {"run_id": tracker.run_id})
    folder.write(colours.checkpoint(weights, hand_computed(colours, weights), step=77), keep_best=1)
    return tmp_path / "run"


def environment(pretending: Path | None, count: int = 2) -> dict[str, str]:
    private = ("RAY_", "MLFLOW_", "CUDA_")
    mine = {name: value for name, value in os.environ.items() if not name.startswith(private)}
    mine |= {"TEST_GPUS": str(count), "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    return mine | ({PRETEND: str(pretending)} if pretending else {})


def on_logical_gpus(*arguments: object, pretending: Path | None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.pipelines.logical_gpus", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=environment(pretending), capture_output=True, text=True, timeout=500, check=False
    )


def assigned(folder: Path) -> list[dict[str, Any]]:
    """What each process was assigned that has asked for its GPU."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_predict_holds_a_gpu_and_decodes_beside_it(registry: Registry, album: Path, tmp_path: Path) -> None:
    pretending = tmp_path / "pretending"
    pretending.mkdir()
    model = ("--model", registry.first.uri, "--home", registry.home)
    ended = on_logical_gpus("predict", album, "--out", tmp_path / "out", *model, pretending=pretending)
    assert ended.returncode == 0, ended.stderr
    assert f"with {registry.first.uri} on 1 GPU" in ended.stdout
    found = assigned(pretending)
    assert found and all(len(each["gpus"]) == 1 and each["visible"] in ("0", "1") for each in found)
    rows = pq.read_table(tmp_path / "out").to_pylist()
    assert [row["name"] for row in rows[:30]] == [list(COLOURS)[place % 3] for place in range(30)]
    assert rows[30]["reason"] == "not an image (8 bytes)"

    ended = on_logical_gpus(
        "predict", album, "--out", tmp_path / "cpu", *model, "--use-gpu", "false", pretending=tmp_path
    )
    assert ended.returncode == 0, ended.stderr
    assert "on CPUs (--use-gpu=false leaves 2 GPUs unused)" in ended.stdout
    assert assigned(tmp_path) == []
    cpu = pq.read_table(tmp_path / "cpu").to_pylist()
    assert [row["name"] for row in cpu] == [row["name"] for row in rows]


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_evaluate_and_register_score_in_a_task_with_a_gpu(
    registry: Registry, run_folder: Path, colours: Coloured, tmp_path: Path
) -> None:
    for verb, arguments, said in (
        ("evaluate", (run_folder, registry.first.uri, "--home", registry.home), "scoring on 1 GPU"),
        ("register", (run_folder, "--name", "on-gpu", "--home", registry.home), "scoring on 1 GPU"),
    ):
        pretending = tmp_path / verb
        pretending.mkdir()
        ended = on_logical_gpus(verb, *arguments, pretending=pretending)
        assert ended.returncode == 0, ended.stderr
        assert said in ended.stdout + ended.stderr
        found = assigned(pretending)
        assert found and all(len(each["gpus"]) == 1 for each in found)


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("verb", ["predict", "evaluate", "serve"])
def test_gpus_that_torch_does_not_see_are_one_line(
    verb: str, registry: Registry, album: Path, run_folder: Path, free_port: int, tmp_path: Path
) -> None:
    model = ("--model", registry.first.uri, "--home", registry.home)
    arguments: dict[str, tuple[object, ...]] = {
        "predict": (album, "--out", tmp_path / "out", *model),
        "evaluate": (run_folder,),
        "serve": (*model, "--port", free_port),
    }
    ended = on_logical_gpus(verb, *arguments[verb], pretending=None)
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith("error: Ray assigned GPU 0 to a process in which torch ")
    assert errors[0].endswith("(CUDA_VISIBLE_DEVICES=0): install NVIDIA's driver there, or set --use-gpu=false")


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_each_replica_holds_a_gpu(registry: Registry, free_port: int, tmp_path: Path) -> None:
    registry.champion_is(registry.first)
    command = [sys.executable, "-m", "tests.pipelines.logical_gpus", "serve", "--home", str(registry.home)]
    command += ["--port", str(free_port), "--model", registry.uri, "--replicas", "2"]
    with (tmp_path / "stderr").open("wb") as stderr:
        server = subprocess.Popen(
            command, cwd=ROOT, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=stderr, text=True
        )
        try:
            assert server.stdout
            said = [server.stdout.readline() for _ in range(3)]
            assert said[2] == "computing on 2 GPUs, up to 64 images at once\n", (tmp_path / "stderr").read_text()
            image = np.full((SIZE, SIZE, 3), COLOURS["lime"], np.uint8)
            body = json.dumps({"instances": [{"image": image.tolist()}]}).encode()
            request = urllib.request.Request(
                f"http://127.0.0.1:{free_port}/invocations", body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert json.load(answer)["predictions"][0]["class"] == "lime"
            held = [tuple(each["gpus"]) for each in assigned(tmp_path)]
            assert {("0",), ("1",)} <= set(held)
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
        finally:
            server.kill()


@pytest.mark.parametrize(("visible", "device"), [("3", "cuda:0"), ("2,3", "cuda:1"), ("GPU-a,GPU-b", "cuda:0")])
def test_the_device_is_the_gpu_that_ray_assigned(visible: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray shows a process its own GPUs only, or all of them (RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES)."""
    import torch

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("ray.get_gpu_ids", lambda: ["GPU-a" if "GPU" in visible else 3])
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        assert inference.gpu_device("--use-gpu") == device
        assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
