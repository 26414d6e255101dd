"""A suite as a user runs it: killed, run again, finished; its table, figures and MLflow run; bad suite files."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from infra.errors import UserError
from infra.storage import LocalStore
from infra.tracking.tracker import resolve_tracking
from pipelines import cli, reproduce
from pipelines.checkpoint import FINISHED, Checkpoint, RunFolder
from pipelines.config.compute_budget import multiply_adds
from pipelines.reproduction.measurements import Measurements
from pipelines.reproduction.plan import plan_runs
from pipelines.reproduction.report import Cell, to_json, to_markdown
from pipelines.reproduction.spec import Suite, load_suite, shipped
from pipelines.training import driver
from resnet_core.config import ModelConfig
from resnet_core.models import build_model
from tests.pipelines.conftest import Coloured, coloured

RECIPE = """
[data]
uri = "{data}"
image_size = 16
train_crop = "center"
eval_resize = 16
ordered = true
[optim]
global_batch_size = 10
[schedule]
length = 2
[run]
home = "{home}"
num_workers = 0
log_every_steps = 1
register_as = "never"
"""
SUITE = """
title = "Colours"
recipe = "{recipe}"
seeds = [0, 1]
measures = ["train_error", "test_error"]
[[entry]]
name = "plain"
set.model.name = "plain20"
[[entry]]
name = "residual"
set.model.name = "resnet20"
published.test_error = 50
[[entry]]
name = "both"
members = ["plain", "residual"]
[[curves]]
name = "errors"
panels = {{plain = ["plain"], residual = ["residual"]}}
[[responses]]
name = "responses"
panels = {{"16 x 16" = ["plain", "residual"]}}
"""
RUNS = [("plain", 0), ("residual", 0), ("plain", 1), ("residual", 1)]
Command = Callable[..., str]


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """A folder with a data set, a recipe and a suite for it."""

    folder: Path
    colours: Coloured

    @property
    def home(self) -> Path:
        return self.folder / "runs"

    @property
    def results(self) -> Path:
        return self.home / "suites" / "colours"

    @property
    def suite(self) -> str:
        return str(self.folder / "colours.toml")

    def run_folders(self) -> list[Path]:
        return sorted(path.parent for path in self.home.glob("*/run.json"))

    def measured(self) -> list[Measurements]:
        files = sorted((self.results / "measured").glob("*.json"))
        return [Measurements.from_json(file.read_bytes()) for file in files]

    def mlflow_runs(self) -> list[Run]:
        client = MlflowClient(resolve_tracking(self.home).uri)
        return client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])

    def files(self) -> dict[str, tuple[int, bytes]]:
        """Everything below the runs' home: when it was written, and what it is."""
        found = (path for path in self.home.rglob("*") if path.is_file())
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


@pytest.fixture(scope="module")
def monkeymodule() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("MLFLOW_DEFAULT_ARTIFACT_ROOT", raising=False)
        yield patch


@pytest.fixture(scope="module")
def command(monkeymodule: pytest.MonkeyPatch) -> Callable[..., int]:
    """`reproduce.py` with these arguments: its exit status."""

    def run(*arguments: str) -> int:
        monkeymodule.setattr(sys, "argv", ["reproduce.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.run(reproduce.main)
        return int(ended.value.code or 0)

    return run


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, command: Callable[..., int]) -> Workplace:
    folder = tmp_path_factory.mktemp("suite")
    colours = coloured(folder, {"azure": (40, 90, 230), "lime": (60, 220, 40), "grey": (128, 128, 128)}, per_class=20)
    (folder / "recipe.toml").write_text(RECIPE.format(data=colours.store.uri, home=folder / "runs"))
    (folder / "colours.toml").write_text(SUITE.format(recipe=folder / "recipe.toml"))
    return Workplace(folder=folder, colours=colours)


@pytest.fixture(scope="module")
def finished(workplace: Workplace, command: Callable[..., int], ray_local: None) -> Workplace:
    """Brought to its end, after a power cut in the third of its four runs."""
    write = RunFolder.write

    def cut(self: RunFolder, checkpoint: Checkpoint, *, keep_best: int) -> None:
        if len(workplace.run_folders()) == 3:
            raise OSError("power cut")
        write(self, checkpoint, keep_best=keep_best)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "write", cut)
        patch.setattr(sys, "argv", ["reproduce.py", workplace.suite])
        with pytest.raises(Exception, match="power cut"):
            reproduce.main()
    assert len(list(workplace.home.glob("*/finished.json"))) == 2
    assert command(workplace.suite) == 0
    return workplace


@pytest.mark.faults
def test_every_run_is_an_ordinary_one(finished: Workplace) -> None:
    names = [path.name for path in finished.run_folders()]
    assert [re.sub(r"-[0-9a-f]{8}$", "", name) for name in names] == sorted(
        f"{entry}-seed{seed}" for entry, seed in RUNS
    )
    assert all(json.loads((path / FINISHED).read_text())["step"] == 6 for path in finished.run_folders())
    runs = {run.info.run_name: run for run in finished.mlflow_runs()}
    assert set(runs) == {*names, "colours"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


@pytest.mark.faults
def test_a_run_that_was_finished_before_the_power_cut_was_not_run_again(finished: Workplace) -> None:
    client = MlflowClient(resolve_tracking(finished.home).uri)
    for run in finished.mlflow_runs():
        if run.info.run_name != "colours":
            points = client.get_metric_history(run.info.run_id, "train/loss")
            assert [point.step for point in points] == [1, 2, 3, 4, 5, 6]


@pytest.mark.faults
def test_errors_are_those_of_the_last_checkpoint_on_whole_splits(finished: Workplace) -> None:
    measured = next(each for each in finished.measured() if each.entry == "residual" and each.seed == 1)
    model = build_model(ModelConfig(name="resnet20", num_classes=3)).eval()
    model.load_state_dict(RunFolder(LocalStore(uri=str(finished.home / measured.name))).load(6).weights)
    for measure, split in (("train_error", "train"), ("test_error", "test")):
        rows = finished.colours.columns(split)
        augment = plan_runs(load_suite(finished.suite), {})[0].recipe.augment
        images = (torch.tensor(rows["image"]) / 255 - torch.tensor(augment.mean)) / torch.tensor(augment.std)
        with torch.no_grad():
            wrong = model(images.permute(0, 3, 1, 2)).argmax(1) != torch.tensor(rows["label"])
        assert measured.errors[measure] == pytest.approx(100 * wrong.double().mean().item())
    assert measured.errors["test_error"] == pytest.approx(measured.test_curve[-1][1])


@pytest.mark.faults
def test_curves_and_responses_of_a_run(finished: Workplace) -> None:
    plain = next(each for each in finished.measured() if each.entry == "plain")
    assert [step for step, _ in plain.train_curve] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in plain.test_curve] == [3, 6]
    assert len(plain.responses) == 19  # 3x3 convolutions of a plain net of 20 layers
    assert all(deviation > 0 for _, deviation in plain.responses)
    assert plain.images == 60


@pytest.mark.faults
def test_table_and_figures(finished: Workplace) -> None:
    rows = json.loads((finished.results / "results.json").read_text())["table"]
    assert [(row["entry"], row["runs"]) for row in rows] == [("plain", 2), ("residual", 2), ("both", 1)]
    cell = rows[1]["measures"]["test_error"]
    of_seeds = [each.errors["test_error"] for each in finished.measured() if each.entry == "residual"]
    assert cell["values"] == of_seeds
    assert cell["mean"] == pytest.approx(sum(of_seeds) / 2)
    assert cell["spread"] == pytest.approx(abs(of_seeds[0] - of_seeds[1]) / 2**0.5)
    assert cell["difference"] == pytest.approx(cell["mean"] - 50)
    table = (finished.results / "table.md").read_text()
    assert f"{cell['mean']:.2f} ± {cell['spread']:.2f} | 50.00 | {cell['difference']:+.2f} |" in table
    for name in ("errors", "responses"):
        assert (finished.results / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.faults
def test_the_suites_own_run_in_mlflow(finished: Workplace) -> None:
    runs = {run.info.run_name: run for run in finished.mlflow_runs()}
    parent = runs.pop("colours")
    links = {tag.removeprefix("run."): value for tag, value in parent.data.tags.items() if tag.startswith("run.")}
    assert links == {name: run.info.run_id for name, run in runs.items()}
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    client = MlflowClient(resolve_tracking(finished.home).uri)
    artifacts = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert artifacts == {"table.md", "results.json", "errors.png", "responses.png"}
    ensemble = next(each for each in finished.measured() if each.entry == "both")
    assert parent.data.metrics["test_error/both"] == pytest.approx(ensemble.errors["test_error"])


@pytest.mark.faults
def test_finished_it_does_nothing(
    finished: Workplace,
    command: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = finished.files()
    monkeypatch.setattr(driver, "_fit", lambda *_: pytest.fail("trained again"))
    assert command(finished.suite) == 0
    assert finished.files() == before
    lines = capsys.readouterr().out.splitlines()
    assert "suite colours is finished: nothing to do" in lines
    assert any(re.match(r"residual +2/2 ", line) for line in lines)


def test_list_runs_nothing(
    workplace: Workplace, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = workplace.folder / "elsewhere"
    assert command(workplace.suite, "--list", "--set", f"run.home={elsewhere}") == 0
    assert len(re.findall(r"-seed[01]-[0-9a-f]{8} +not begun", capsys.readouterr().out)) == 4
    assert not elsewhere.exists()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (("seeds = [0, 1]", "seeds = []"), "entry plain: seeds must not be empty"),
        (("seeds = [0, 1]", "seeds = [0, 0]"), "entry plain: seeds must differ, got [0, 0]"),
        (("seeds = [0, 1]", 'seeds = ["0"]'), "seeds.0: input should be a valid integer, got '0'"),
        (("[[curves]]", "[[curve]]"), "unknown key curve (did you mean curves?); keys: title, recipe, seeds, set,"),
        (("members =", "member ="), "unknown key entry.member (did you mean entry.members?); keys of entry: name,"),
        (
            ("members = [", 'members = ["plane", '),
            "entry both names plane, which the suite does not train (did you mean",
        ),
        (('name = "both"', 'name = "plain"'), "entry plain is defined twice"),
        (("published.test_error", "published.test_eror"), "entry.1.published.test_eror"),
        (("published.test_error", "published.ten_crop_error"), "published.ten_crop_error is not among the suite's"),
        (
            ('set.model.name = "plain20"', 'set.model.nme = "plain20"'),
            "unknown key model.nme (did you mean model.name?)",
        ),
        (('set.model.name = "plain20"', "set.run.seed = 3"), "run.seed cannot be set: a suite lists its seeds"),
        (('title = "Colours"', ""), "title is missing"),
        (("title", "title ="), "not a TOML file"),
        (("recipe.toml", "cifar10_resnet21"), "no recipe"),
    ],
)
def test_a_bad_suite_is_one_line(
    workplace: Workplace,
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    change: tuple[str, str],
    line: str,
) -> None:
    text = Path(workplace.suite).read_text()
    assert change[0] in text
    bad = workplace.folder / "bad.toml"
    bad.write_text(text.replace(*change))
    assert command(str(bad)) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(r"error: .+\n", output.err)
    assert line in output.err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["degradatoin"], "no suite degradatoin (did you mean degradation?); shipped suites: cifar, degradation,"),
        ([], "name a suite: a TOML file, or one of cifar, degradation,"),
        (["degradation", "--only", "plain57"], "has no entry plain57 (did you mean plain56?); entries: plain20,"),
        (["degradation", "--set", "modle.name=resnet20"], "unknown section modle (did you mean model?)"),
        (["degradation", "--set", "run.name=mine"], "run.name cannot be set: a suite names its runs"),
    ],
)
def test_a_bad_command_is_one_line(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    assert command(*arguments) == 2
    assert line in capsys.readouterr().err


def suite_of(tmp_path: Path, **tables: str) -> Suite:
    (tmp_path / "suite.toml").write_text("\n".join(tables.values()))
    return load_suite(str(tmp_path / "suite.toml"))


EQUAL = """
title = "Equal"
recipe = "cifar10_resnet20"
equal_compute = "shallow"
[[entry]]
name = "shallow"
[[entry]]
name = "deep"
set.model.name = "resnet56"
"""


def test_equal_compute_gives_every_entry_the_budget_of_the_baseline(tmp_path: Path) -> None:
    shallow, deep = (run.recipe for run in plan_runs(suite_of(tmp_path, all=EQUAL), {}))
    assert shallow.schedule.length == 64_000
    budgets = [multiply_adds(recipe) * recipe.schedule.length for recipe in (shallow, deep)]
    assert budgets[1] == pytest.approx(budgets[0], abs=multiply_adds(deep))  # within a step
    assert deep.schedule.length < 23_000
    half, most = deep.schedule.milestones
    assert (half, most) == (
        pytest.approx(deep.schedule.length / 2, abs=1),
        pytest.approx(deep.schedule.length * 3 / 4, abs=1),
    )


def test_equal_compute_in_epochs_scales_every_duration(tmp_path: Path) -> None:
    epochs = {
        "schedule.unit": "epochs",
        "schedule.length": 8.0,
        "schedule.milestones": [4.0, 6.0],
        "schedule.warmup": 1.0,
    }
    shallow, deep = (run.recipe for run in plan_runs(suite_of(tmp_path, all=EQUAL), epochs))
    factor = multiply_adds(shallow) / multiply_adds(deep)
    assert deep.schedule.length == pytest.approx(8 * factor, abs=1e-6)
    assert deep.schedule.milestones == pytest.approx((4 * factor, 6 * factor), abs=1e-6)
    assert deep.schedule.warmup == pytest.approx(factor, abs=1e-6)


def test_equal_compute_refuses_what_it_cannot_count(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"give set\.model\.num_classes"):
        plan_runs(suite_of(tmp_path, all=EQUAL), {"model.num_classes": 0})


def test_entries_of_different_homes_are_refused(tmp_path: Path) -> None:
    suite = suite_of(tmp_path, all=EQUAL + 'set.run.home = "elsewhere"')
    with pytest.raises(UserError, match=r"its runs must share one run\.home, got elsewhere, runs"):
        plan_runs(suite, {})


def test_runs_are_planned_seed_by_seed_and_named_by_their_recipe(tmp_path: Path) -> None:
    text = EQUAL.replace('title = "Equal"', 'title = "Equal"\nseeds = [3, 5]') + "seeds = [7]\n"
    suite = suite_of(tmp_path, all=text)
    runs = plan_runs(suite, {})
    assert [(run.entry.name, run.seed) for run in runs] == [("shallow", 3), ("deep", 7), ("shallow", 5)]
    assert [run.recipe.run.seed for run in runs] == [3, 7, 5]
    assert len({run.name for run in runs}) == 3
    longer = plan_runs(suite, {"schedule.length": 65_000})
    assert not {run.name for run in longer} & {run.name for run in runs}
    elsewhere = plan_runs(suite, {"run.num_workers": 7, "run.register_as": "mine"})
    assert [run.name for run in elsewhere] == [run.name for run in runs]
    assert {run.recipe.run.register_as for run in runs} == {""}


PUBLISHED = {
    "cifar": {
        "resnet20": 8.75,
        "resnet32": 7.51,
        "resnet44": 7.17,
        "resnet56": 6.97,
        "resnet110": 6.61,
        "resnet1202": 7.93,
    },
    "degradation": {"resnet20": 8.75, "resnet56": 6.97},
    "variants": {"relu": 8.75},
}


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_suite_can_be_planned(name: str) -> None:
    suite = load_suite(name)
    runs = plan_runs(suite, {})
    assert len(runs) == sum(len(suite.seeds_of(entry)) for entry in suite.trained)
    assert all(
        len(suite.seeds_of(entry)) >= 3 for entry in suite.trained if name.startswith(("degradation", "variants"))
    )
    published = {entry.name: entry.published["test_error"] for entry in suite.entry if "test_error" in entry.published}
    if name != "imagenet":
        assert published == PUBLISHED.get(name, {})


def test_imagenets_published_figures_are_those_of_the_papers_tables() -> None:
    suite = load_suite("imagenet")
    table = {entry.name: entry.published for entry in suite.entry}
    ten_crop = {name: figures["ten_crop_error"] for name, figures in table.items() if "ten_crop_error" in figures}
    assert ten_crop == {
        **{"plain18": 27.94, "plain34": 28.54, "resnet18": 27.88},  # Table 2
        **{"resnet34-A": 25.03, "resnet34-B": 24.52, "resnet34-C": 24.19},  # Table 3
        **{"resnet50": 22.85, "resnet101": 21.75, "resnet152": 21.43},
    }
    multi_scale = {name: figures["multi_scale_top5_error"] for name, figures in table.items() if len(figures) == 6}
    assert multi_scale == {"resnet50": 5.25, "resnet101": 4.60, "resnet152": 4.49}  # Table 4
    members = suite.find("six-models").members
    assert sum(len(suite.seeds_of(suite.find(name))) for name in members) == 6  # Table 5


def test_a_table_with_runs_that_are_missing(tmp_path: Path) -> None:
    suite = suite_of(tmp_path, all=EQUAL + "published.test_error = 6.97\n")
    table = to_markdown(suite, []).splitlines()
    assert "| shallow | 0/1 | - | - | - | - | - | - |" in table
    assert "| deep | 0/1 | - | - | - | - | 6.97 | - |" in table
    assert json.loads(to_json(suite, []))["table"][1]["measures"]["test_error"]["published"] == 6.97


def test_the_spread_is_the_sample_deviation() -> None:
    cell = Cell(values=(6.0, 7.0, 8.0), published=6.43)
    assert (cell.mean, cell.spread, cell.difference) == (7.0, 1.0, pytest.approx(0.57))
    assert Cell(values=(6.0,), published=None).spread is None


def test_the_suite_in_the_docs_can_be_planned(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "reproduce.md").read_text()
    example = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert len(example) == 1
    suite = suite_of(tmp_path, all=example[0])
    assert [run.entry.name for run in plan_runs(suite, {})] == ["as-published", "zero-init"] * 3
    assert [run.recipe.model.zero_init_last for run in plan_runs(suite, {})] == [False, True] * 3
