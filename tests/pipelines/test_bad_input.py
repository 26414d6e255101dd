"""Every line of what a user can get wrong: one line on stderr that names it, exit status 2, nothing half written.

Each case is a command as a user gives it. `docs/bad-input.md` shows the lines.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from infra.errors import UserError
from infra.s3_server import serve_s3
from infra.storage import LocalStore
from infra.tracking.client import Tracking, connect
from pipelines.checkpoint import FINISHED, RUN, RunFolder
from pipelines.config.recipe import load_recipe
from tests.commands import run_command
from tests.pipelines.conftest import COLOURS, Coloured, coloured

ROOT = Path(__file__).parents[2]
RECIPE = """
[model]
name = "resnet20"
[data]
uri = "data"
image_size = 16
eval_resize = 16
[optim]
global_batch_size = 10
[schedule]
length = 1
shape = "cosine"
[run]
name = "demo"
num_workers = 0
"""
BEGUN = "begun"  # a run that a damaged shard stopped


@dataclass(frozen=True, kw_only=True)
class Shell:
    """A folder to give commands in: `data` prepared, `demo.toml` a recipe for it, and an environment of its own."""

    folder: Path
    environment: dict[str, str]

    def __call__(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_command(verb, *arguments, cwd=self.folder, environment=self.environment)

    def train(self, *settings: str, recipe: str = "demo.toml") -> subprocess.CompletedProcess[str]:
        return self("train", recipe, *(part for setting in settings for part in ("--set", setting)))

    def with_environment(self, **values: str) -> Shell:
        return replace(self, environment={**self.environment, **values})

    def files(self) -> set[str]:
        found = {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()}
        return {path for path in found if not path.startswith("home/")}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Nothing of the machine's own, and an MLflow database that has its tables already: making them takes seconds."""
    home = tmp_path_factory.mktemp("home")
    database = f"sqlite:///{home / 'mlflow.db'}"
    connect(Tracking(uri=database))
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "MLFLOW_", "RAY_"))}
    return kept | {
        "HOME": str(home),
        "MLFLOW_TRACKING_URI": database,
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": str(home / "artifacts"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "OMP_NUM_THREADS": "1",
    }


def new_shell(folder: Path, colours: Coloured, environment: dict[str, str]) -> Shell:
    shutil.copytree(colours.store.uri, folder / "data")
    (folder / "demo.toml").write_text(RECIPE)
    return Shell(folder=folder, environment=environment)


@pytest.fixture
def shell(tmp_path: Path, colours: Coloured, environment: dict[str, str]) -> Shell:
    return new_shell(tmp_path, colours, environment)


@pytest.fixture(scope="module")
def begun(
    tmp_path_factory: pytest.TempPathFactory, colours: Coloured, environment: dict[str, str]
) -> tuple[Shell, subprocess.CompletedProcess[str]]:
    """A run of one worker that met a flipped byte in a shard of the right size, and how it ended."""
    shell = new_shell(tmp_path_factory.mktemp("begun"), colours, environment)
    flip_a_byte(shell.folder / "data" / "train-00001.parquet")
    return shell, shell.train("run.num_workers=1", f"run.name={BEGUN}")


@pytest.fixture(scope="module")
def closed_endpoint() -> Iterator[str]:
    """A URL of loopback where nothing listens, and nothing else can begin to."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


def refused(ended: subprocess.CompletedProcess[str], *named: str) -> str:
    """The line of a command that ended as it must; it has all of `named` in it."""
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    lines = ended.stderr.splitlines()
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("error: ")
    for name in named:
        assert name in lines[0]
    return lines[0]


def flip_a_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("recipe", "named"),
    [
        ("mnist5l", ["no recipe mnist5l", "did you mean mnist5k?"]),
        ("gone.toml", ["no recipe gone.toml", "`python pipelines/train.py --list` shows the shipped ones"]),
    ],
)
def test_unknown_recipe(shell: Shell, recipe: str, named: list[str]) -> None:
    before = shell.files()
    refused(shell.train(recipe=recipe), *named)
    assert shell.files() == before


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("optim.lr_per_265=0.1", ["unknown key optim.lr_per_265", "did you mean optim.lr_per_256?"]),
        ("schedule.epochs=3", ["unknown key schedule.epochs", "did you mean schedule.length?"]),
        ("model.name=ResNet50", ["model.name", "got 'ResNet50' (did you mean resnet50?)"]),
        ("lr=0.1", ["--set lr=0.1", "expected section.key=value", "did you mean optim.lr_per_256?"]),
        ("optin.momentum=0.5", ["unknown section optin", "did you mean optim?"]),
        ("optim.lr_per_256=fast", ["optim.lr_per_256", "'fast'"]),
        ("data.ordered=1", ["data.ordered", "got 1"]),
        ("optim.momentum=1.5", ["optim.momentum must be in [0, 1)", "1.5"]),
        ("run.num_workers=-1", ["run.num_workers must be 0 or more, or [min, max]", "-1"]),
        ("optim.momentum", ["--set optim.momentum", "expected section.key=value"]),
        ("run.name=..", ["run.name must name a folder", "'..'"]),
        ('run.name="a\\nb"', ["run.name must name a folder"]),
    ],
    ids=[
        "key",
        "other's key",
        "network",
        "other's key alone",
        "section",
        "type",
        "flag",
        "range",
        "workers",
        "no value",
        "parent folder",
        "newline",
    ],
)
def test_bad_setting(shell: Shell, setting: str, named: list[str]) -> None:
    before = shell.files()
    refused(shell.train(setting), *named)
    assert shell.files() == before


def test_commands_here_end_as_those_that_a_shell_starts(shell: Shell) -> None:
    """The tests of this file fork their commands: what an import prints, or does to the environment, is not seen."""
    drop_shard(shell.folder / "data")
    command = [sys.executable, str(ROOT / "pipelines" / "train.py"), "demo.toml"]
    started = subprocess.run(command, cwd=shell.folder, env=shell.environment, capture_output=True, text=True)
    forked = shell.train()
    assert (forked.returncode, forked.stdout) == (started.returncode, started.stdout)
    assert refused(forked, "shard train-00001.parquet is missing") == refused(started)


def test_global_batch_that_does_not_divide(shell: Shell) -> None:
    ended = shell.train("optim.global_batch_size=9", "run.num_workers=2")
    refused(ended, "optim.global_batch_size = 9", "run.num_workers = 2")
    assert not (shell.folder / "runs" / "demo").exists()


def drop_manifest(data: Path) -> None:
    (data / "manifest.json").unlink()


def edit_manifest(data: Path) -> None:
    manifest = data / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"lime"', '"lemon"'))


def drop_shard(data: Path) -> None:
    (data / "train-00001.parquet").unlink()


def cut_shard(data: Path) -> None:
    shard = data / "train-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (drop_manifest, ["no manifest.json in ", "/data", "run prepare.py"]),
        (edit_manifest, ["/data/manifest.json was edited"]),
        (drop_shard, ["shard train-00001.parquet is missing in ", "/data"]),
        (cut_shard, ["shard train-00001.parquet in ", "the manifest says "]),
    ],
)
def test_damaged_data_set(shell: Shell, damage: Callable[[Path], None], named: list[str]) -> None:
    damage(shell.folder / "data")
    refused(shell.train(), *named)
    assert not (shell.folder / "runs" / "demo").exists()


def test_flipped_byte_ends_the_run_at_once_and_naming_the_shard(begun) -> None:
    """Found by a data task, in another process than the one that tells of it; the group is not started again."""
    shell, ended = begun
    refused(ended, "shard train-00001.parquet in ", "/data: row group ", "the manifest says ")
    assert "resuming from the last checkpoint" not in ended.stdout
    folder = RunFolder(LocalStore(uri=str(shell.folder / "runs" / BEGUN)))
    assert folder.steps() == []
    assert folder.read_json(RUN) is not None


@pytest.mark.faults
def test_flipped_byte_in_local_mode(shell: Shell) -> None:
    flip_a_byte(shell.folder / "data" / "train-00001.parquet")
    refused(shell.train(), "shard train-00001.parquet in ", "/data: row group ")


def test_run_of_another_recipe(begun) -> None:
    shell, _ = begun
    before = shell.files()
    ended = shell.train(f"run.name={BEGUN}", "optim.lr_per_256=0.3")
    refused(ended, f"run {BEGUN} began with another recipe", "optim.lr_per_256 = 0.1, now 0.3", "run.name")
    assert shell.files() == before


def test_run_of_another_data_set(begun, tmp_path: Path) -> None:
    shell, _ = begun
    other = coloured(tmp_path, COLOURS, per_class=4, seed=7)
    before = shell.files()
    ended = shell.train(f"run.name={BEGUN}", f"data.uri={other.store.uri}")
    refused(ended, f"run {BEGUN} was trained on data set ", f"holds {other.manifest.name}", "run.name")
    assert shell.files() == before


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["model.in_channels=1"], ["model.in_channels must be 3", "RGB", "got 1"]),
        (["model.init_from=gone.safetensors"], ["model.init_from: there is no gone.safetensors"]),
        (["model.init_from=demo.toml"], ["model.init_from: demo.toml is not a safetensors file"]),
        (
            ["model.init_from=torchvision://resnet5/IMAGENET1K_V1"],
            [
                "model.init_from: torchvision has no weights for the network 'resnet5' (did you mean torchvision://resnet50?)"
            ],
        ),
        (["optim.average_from=0.99"], ["demo: optim.average_from = 0.99 leaves no step"]),
        (
            ["model.name=resnet18", "optim.global_batch_size=1"],
            ["BatchNorm needs two values per channel", "1 x 1 at 16 pixels", "raise optim.global_batch_size to 2"],
        ),
        (["data.repeats=3"], ["optim.global_batch_size = 10 cannot be divided among", "data.repeats = 3"]),
        (
            ["curriculum.until=[0.5]", 'curriculum.model=["resnet56", "resnet20"]'],
            ["demo: depths must be 3 numbers, none below the present [9, 9, 9]"],
        ),
    ],
    ids=[
        "channels",
        "no weights",
        "no tensors",
        "unknown hub name",
        "nothing to average",
        "one value per channel",
        "views",
        "shrinking",
    ],
)
def test_what_does_not_fit_the_data_or_the_schedule(shell: Shell, settings: list[str], named: list[str]) -> None:
    refused(shell.train(*settings), *named)


@pytest.mark.parametrize("name", [RUN, FINISHED])
@pytest.mark.parametrize("content", ["{", "[]", '{"step": 1}', "\xff"])
def test_damaged_record_of_a_run(shell: Shell, name: str, content: str) -> None:
    record = shell.folder / "runs" / "demo" / name
    record.parent.mkdir(parents=True)
    record.write_bytes(content.encode("latin-1"))
    refused(shell.train(), f"/runs/demo/{name} is damaged", "delete it")


@pytest.mark.parametrize("other", ["recipe", "data set"])
def test_checkpoint_of_another_run_in_the_folder(
    shell: Shell, colours: Coloured, weights: dict[str, torch.Tensor], tmp_path: Path, other: str
) -> None:
    """Such as one that was copied there: it is not loaded, and what is there stays."""
    folder = RunFolder(LocalStore(uri=str(shell.folder / "runs" / "demo")))
    recipe = load_recipe(shell.folder / "demo.toml", {"model.num_classes": len(COLOURS)}).flat()
    mine = replace(colours.checkpoint(weights, {"accuracy": 0.5}, step=2), recipe=recipe)
    folder.write(mine, keep_best=1)
    before = shell.files()
    if other == "recipe":
        refused(shell.train("model.name=resnet32"), "checkpoint 2 of run demo", "model.name = 'resnet20'")
    else:
        uri = coloured(tmp_path / "other", COLOURS, per_class=4, seed=7).store.uri
        before |= {path for path in shell.files() if path.startswith("other/")}
        refused(shell.train(f"data.uri={uri}"), "checkpoint 2 of run demo was trained on data set ")
    assert shell.files() == before


@pytest.mark.parametrize("other", ["recipe", "data set"])
def test_finished_run_is_not_another_one(shell: Shell, colours: Coloured, tmp_path: Path, other: str) -> None:
    """A finished run says that it is finished to its own recipe and data set only."""
    classes = {"model.num_classes": len(COLOURS)}
    trajectory = load_recipe(shell.folder / "demo.toml", classes).trajectory()
    folder = RunFolder(LocalStore(uri=str(shell.folder / "runs" / "demo")))
    folder.write_json(RUN, {"run_id": "1", "data_digest": colours.manifest.digest, "trajectory": trajectory})
    folder.write_json("finished.json", {"run_id": "1", "step": 3, "accuracy": 0.5})
    assert "run demo is finished: nothing to do" in shell.train().stdout
    if other == "recipe":
        refused(shell.train("run.seed=1"), "run demo began with another recipe (run.seed = 0, now 1)")
    else:
        uri = coloured(tmp_path / "other", COLOURS, per_class=4, seed=7).store.uri
        refused(shell.train(f"data.uri={uri}"), "run demo was trained on data set ")


def test_finished_run_says_its_data_set_and_is_not_that_of_a_place_without_one(shell: Shell, colours: Coloured) -> None:
    """The data set may be gone; one that was never there may not pass for it (the demo's recipe, given photographs)."""
    classes = {"model.num_classes": len(COLOURS)}
    trajectory = load_recipe(shell.folder / "demo.toml", classes).trajectory()
    folder = RunFolder(LocalStore(uri=str(shell.folder / "runs" / "demo")))
    data = {"data_digest": colours.manifest.digest, "data_uri": str(shell.folder / "data")}
    folder.write_json(RUN, {"run_id": "1", "trajectory": trajectory, **data})
    folder.write_json(FINISHED, {"run_id": "1", "step": 3, "accuracy": 0.5})
    shutil.rmtree(shell.folder / "data")
    done = shell.train().stdout
    assert "run demo is finished: nothing to do" in done
    assert f"trained on  data set {colours.manifest.name} at data" in done
    refused(
        shell.train("data.uri=photos"),
        f"was trained on data set {colours.manifest.name} at data",
        "there is no data set at photos",
    )


def test_empty_class_folder(shell: Shell) -> None:
    for name in ("full", "empty"):
        (shell.folder / "images" / name).mkdir(parents=True)
    (shell.folder / "images" / "full" / "1.png").write_bytes(b"")
    refused(shell("prepare", "images", "out"), "class folder images/empty holds no images")
    assert not (shell.folder / "out" / "manifest.json").exists()


def test_label_outside_the_range(shell: Shell) -> None:
    idx = shell.folder / "idx"
    idx.mkdir()
    for stem in ("train", "t10k"):
        labels = bytes([3, 10 if stem == "train" else 9])
        (idx / f"{stem}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, 2, 4, 4) + bytes(32))
        (idx / f"{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 2) + labels)
    refused(shell("prepare", "idx", "out"), "idx/train-labels-idx1-ubyte: label 10 of sample 1 is outside 0..9")
    assert not (shell.folder / "out" / "manifest.json").exists()


def test_a_table_that_contradicts_itself(shell: Shell, colours: Coloured) -> None:
    shutil.copytree(Path(colours.store.uri).with_name("images"), shell.folder / "images")
    rows = ["path,label", "images/lime/003.png,lime", "images/lime/004.png,lime", "images/lime/003.png,moss"]
    (shell.folder / "labels.csv").write_text("\n".join(rows))
    refused(
        shell("prepare", "labels.csv", "out"),
        "labels.csv: rows contradict each other for 1 image: images/lime/003.png (rows 2 and 4) has two labels, lime "
        "and moss: correct them; if images have several labels, set prepare.multi_label=true",
    )
    refused(
        shell("prepare", "labels.csv", "out", "--set", "prepare.label_column=lable"),
        "prepare.label_column: labels.csv has no column 'lable' (did you mean label?): it has path, label",
    )
    assert not (shell.folder / "out" / "manifest.json").exists()


@pytest.mark.faults
def test_image_that_does_not_decode(shell: Shell, colours: Coloured) -> None:
    images = shell.folder / "images"
    shutil.copytree(Path(colours.store.uri).with_name("images"), images)
    broken = images / "lime" / "003.png"
    broken.write_bytes(broken.read_bytes()[:100])
    refused(shell("prepare", "images", "out"), "1 of 60 images cannot be used: lime/003.png (")
    assert not (shell.folder / "out" / "manifest.json").exists()


def test_unwritable_destination(shell: Shell) -> None:
    (shell.folder / "file").write_text("mine")
    before = shell.files()
    refused(shell("prepare", "mnist5k", "file"), "/file is a file: give a folder")
    refused(shell.train("run.home=file"), "/file is a file: give a folder")
    refused(shell.train("run.home=file/runs"), "cannot write to ", "/file/runs: Not a directory")
    assert shell.files() == before
    assert (shell.folder / "file").read_text() == "mine"


@pytest.mark.parametrize("place", ["/proc/nope", "/dev/null/x", "dangling", "x" * 300])
@pytest.mark.parametrize(
    "command",
    [
        ("prepare", "mnist5k", "PLACE"),
        ("train", "demo.toml", "--set", "run.home=PLACE"),
        ("reproduce", "degradation_fashion", "--set", "run.home=PLACE"),
        ("tune", "depth_fashion", "--set", "run.home=PLACE"),
    ],
    ids=lambda command: command[0],
)
def test_odd_destination(shell: Shell, command: tuple[str, ...], place: str) -> None:
    """In /proc every name is absent, also after it was made: `prepare` waited for it for ever."""
    (shell.folder / "dangling").symlink_to("gone")
    before = shell.files()
    pipeline, *arguments = [part.replace("PLACE", place) for part in command]
    refused(shell(pipeline, *arguments), place)
    assert shell.files() == before


@pytest.mark.faults
def test_no_ray_where_the_environment_names_one(shell: Shell) -> None:
    """Ray itself waits for 14 minutes."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        ended = shell.with_environment(RAY_ADDRESS=address)("prepare", "mnist5k", "out")
    refused(ended, f"no Ray cluster answers at {address} (RAY_ADDRESS)", "unset it to start Ray on this machine")
    assert not (shell.folder / "out" / "manifest.json").exists()


def test_wrong_s3_endpoint(shell: Shell, closed_endpoint: str) -> None:
    wrong = shell.with_environment(
        AWS_ENDPOINT_URL=closed_endpoint, AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b", AWS_DEFAULT_REGION="here"
    )
    before = shell.files()
    named = f"no S3 server answers at {closed_endpoint} for s3://bucket/"
    refused(wrong.train("run.home=s3://bucket/runs"), named, "check AWS_ENDPOINT_URL")
    refused(wrong.train("data.uri=s3://bucket/data"), named, "check AWS_ENDPOINT_URL")
    refused(wrong("prepare", "mnist5k", "s3://bucket/data"), named, "check AWS_ENDPOINT_URL")
    assert shell.files() == before


def test_wrong_s3_credentials(shell: Shell) -> None:
    try:
        with serve_s3(shell.folder / "home" / "s3") as server:
            wrong = shell.with_environment(**{**server.environment, "AWS_SECRET_ACCESS_KEY": "wrong"})
            before = shell.files()
            named = f"{server.endpoint} refuses access to bucket '{server.bucket}'"
            refused(wrong.train(f"run.home=s3://{server.bucket}/runs"), named, "check AWS_ACCESS_KEY_ID")
            refused(wrong.train(f"data.uri=s3://{server.bucket}/data"), named, "check AWS_ACCESS_KEY_ID")
            assert shell.files() == before
    except UserError as error:
        pytest.skip(str(error))


@pytest.mark.faults
def test_mlflow_server_down_at_start(shell: Shell, closed_endpoint: str) -> None:
    ended = shell.with_environment(MLFLOW_TRACKING_URI=closed_endpoint).train()
    refused(ended, f"no MLflow server answers at {closed_endpoint}", "MLFLOW_TRACKING_URI")
    assert not (shell.folder / "runs" / "demo").exists()


def test_more_workers_than_cpus(shell: Shell) -> None:
    workers = 10 * (os.cpu_count() or 1)
    ended = shell.train(f"run.num_workers={workers}", f"optim.global_batch_size={workers}")
    refused(ended, f"the run needs {workers + 1} CPUs at once and the cluster has ", "run.num_workers")
    assert not (shell.folder / "runs" / "demo").exists()
