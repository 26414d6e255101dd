"""The checks that `train.py` makes before its first step, without starting or writing anything."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from infra.cluster import local_cpus
from infra.errors import UserError
from infra.storage import open_store
from infra.tracking.address import check_address, reach, sqlite_file
from infra.tracking.client import resolve_tracking
from pipelines import cli
from pipelines.checkpoint import FINISHED, RunFolder
from pipelines.config.paths import shown
from pipelines.data.prepare.sources import open_source
from pipelines.data.shards.manifest import MANIFEST, Manifest, check_shards, load_manifest
from pipelines.training.driver import fitted
from pipelines.training.placement import least_cpus
from pipelines.training.recipe_for_data import check_own_data
from pipelines.training.same_run import check_same_run
from pipelines.training.start_weights import find_start

if TYPE_CHECKING:
    from infra.storage import Store
    from pipelines.config.recipe import Recipe
    from pipelines.data.prepare.source import Source

_GB = 1e9


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One check: what it is about, what it found, and whether a run would stop there."""

    name: str
    found: str
    passed: bool = True

    @property
    def line(self) -> str:
        return f"{'ok    ' if self.passed else 'FAILED'}      {self.name}: {self.found}"


@dataclass(kw_only=True, slots=True)
class Checked:
    """The checks so far, and what they have found out."""

    recipe: Recipe  # fitted to the data set, if there is one
    checks: list[Check] = field(default_factory=list)
    manifest: Manifest | None = None
    source: Source | None = None  # from which the data set would be prepared

    def add(self, name: str, check: Callable[[], str]) -> None:
        """Call `check`, which returns what it found; its UserError is a failed check."""
        try:
            self.checks.append(Check(name=name, found=check()))
        except UserError as error:
            self.checks.append(Check(name=name, found=str(error), passed=False))


def check_workers(recipe: Recipe, cores: int) -> str:
    """Return the CPUs that the workers hold on a machine of so many cores. Raise UserError if they do not fit.

    Ray counts at least four CPUs on one machine, and a data task needs one of them.
    """
    needed, have = least_cpus(recipe.run), local_cpus(cores)
    if needed > have:
        raise UserError(
            f"the run needs {needed} CPUs at once, and this machine has {have}: lower run.num_workers or "
            "run.cpus_per_worker, or join a larger cluster by RAY_ADDRESS"
        )
    return f"{needed - 1} CPUs of {have} that Ray counts on this machine"


def checked(recipe: Recipe) -> Checked:
    """Check the data set, the recipe against it, the run's folder, its destination, and MLflow."""
    state = Checked(recipe=recipe)
    state.add("data set", lambda: _data(state))
    if state.manifest is not None:
        state.add("recipe fits the data", lambda: _fits(state))
    state.add("run", lambda: _run(state))
    state.add("destination", lambda: _destination(recipe))
    state.add("MLflow", lambda: _tracking(recipe))
    return state


def check_storage(recipe: Recipe, needed: int) -> str:
    """Return how much of the destination's free space checkpoints take. Raise UserError if they do not fit."""
    store = open_store(recipe.run.home)
    if store.is_remote:
        return f"{needed / _GB:,.2f} GB at {store.description}"
    free = shutil.disk_usage(_existing(Path(store.uri))).free
    if needed > free:
        raise UserError(
            f"checkpoints take {needed / _GB:,.2f} GB, and {shown(recipe.run.home)} has {free / _GB:,.2f} GB left: "
            "free some, choose another run.home, or lower run.keep_best"
        )
    return f"{needed / _GB:,.2f} GB of {free / _GB:,.0f} GB that are free"


def _data(state: Checked) -> str:
    recipe = state.recipe
    store = open_store(recipe.data.uri)
    if store.is_remote:
        store.check_access(write=False)
    if recipe.data.source and not store.exists(MANIFEST):
        made = recipe.prepare
        state.source = open_source(recipe.data.source, holdout=made.holdout, validation=made.validation, seed=made.seed)
        return f"will be prepared from {state.source.description}"
    manifest = load_manifest(store)
    check_own_data(recipe, store, manifest)
    strange = check_shards(store, manifest)
    state.manifest = manifest
    ignored = f"; {len(strange)} shards are not its own and would be ignored" if strange else ""
    return f"{manifest.name}, all {len(manifest.shards)} shards are there{ignored}"


def _fits(state: Checked) -> str:
    assert state.manifest is not None
    state.recipe = fitted(state.recipe, state.manifest)
    start = f"; {shown(state.recipe.model.init_from)} fits the network" if _starts(state.recipe, state.manifest) else ""
    return f"splits, {state.recipe.model.num_classes:,} classes, batch and workers{start}"


def _starts(recipe: Recipe, manifest: Manifest) -> bool:
    """Return whether the run starts from weights, after a check that they fit; a download goes into the cache."""
    folder = RunFolder(_home(recipe).sub(recipe.run_name))
    network = recipe.phases(manifest.splits[recipe.data.train_split])[0].model
    tracking = resolve_tracking(cli.local_home(recipe.run.home))
    return find_start(recipe, network, folder, tracking, lambda line: None) is not None


def _run(state: Checked) -> str:
    recipe = state.recipe
    folder = RunFolder(_home(recipe).sub(recipe.run_name))
    if state.manifest is not None:
        check_same_run(folder, recipe, state.manifest)
    if folder.store.exists(FINISHED):
        return f"{recipe.run_name} is finished: train.py would do nothing"
    steps = folder.steps()
    return f"{recipe.run_name} {f'resumes at step {steps[-1]:,}' if steps else 'is new'}"


def _home(recipe: Recipe) -> Store:
    return open_store(recipe.run.home)


def _destination(recipe: Recipe) -> str:
    store = _home(recipe)
    if store.is_remote:
        store.check_access(write=False)
        return f"{store.description} can be read; writing is not tried"
    there = _existing(Path(store.uri))
    if not there.is_dir():
        raise UserError(f"{there} is a file: give a folder with run.home")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{there} cannot be written: choose another run.home")
    return f"{shown(recipe.run.home)} can be written"


def _existing(path: Path) -> Path:
    """Return the path, or the closest folder above it that exists."""
    return next(each for each in (path, *path.parents) if each.exists())


def _tracking(recipe: Recipe) -> str:
    tracking = resolve_tracking(cli.local_home(recipe.run.home))
    check_address(tracking.uri)
    registry = f", registers as {recipe.run.register_as}" if recipe.run.register_as else ""
    file = sqlite_file(tracking.uri)
    if file is not None and not file.exists():  # asking a database makes its file
        there = _existing(file)
        if not os.access(there, os.W_OK | os.X_OK):
            raise UserError(f"{there} cannot be written: MLflow's database belongs there")
        return f"a new database, {shown(str(file))}{registry}"
    reach(tracking.uri)
    return f"{tracking.description} answers{registry}"
