"""Score the models of a request, and write the report on them to files."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

import infra.cluster
from infra.errors import UserError
from infra.storage import open_store
from pipelines.config.sections import UseGpu
from pipelines.evaluation import TASK_MODULES
from pipelines.evaluation.models import Request, open_targets
from pipelines.evaluation.placement import choose
from pipelines.evaluation.report import Report
from pipelines.evaluation.task import task_of


def report_on(request: Request, use_gpu: UseGpu, console: Console) -> Report:
    """Score the models of a request. Return the report on one model, or the comparison of two.

    Raises:
        UserError: a model or its data set cannot be opened, or an image cannot be scored.
    """
    targets = open_targets(request, console.print)
    task = task_of(multi_label=targets[0].multi_label)
    infra.cluster.connect(min_cpus=1, modules=TASK_MODULES)
    placement, reports = choose(use_gpu), []
    sys.stderr.write(f"scoring on {placement.description}\n")
    for target in targets:
        with console.status(Text(f"{target.description} on the split {target.data.split}")):
            reports.append(task.report(target, task.evaluate(placement, target.model, target.data)))
    return reports[0] if len(reports) == 1 else task.compare(*reports)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outputs:
    """Files and folders that a report is written to; "" = none."""

    json: str = ""
    predictions: str = ""
    plots: str = ""

    def check(self) -> None:
        """Raise UserError if a file cannot be written. Call this before scoring, which takes minutes."""
        for option, file in (("--json", self.json), ("--predictions", self.predictions)):
            if file:
                check_file(option, file)
        if self.plots:
            check_folder("--plots", self.plots)

    def write(self, report: Report) -> None:
        """Write the report to every file and folder that is named."""
        if self.json:
            write_file("--json", self.json, (json.dumps(report.as_json(), indent=1) + "\n").encode())
        if self.predictions:
            write_file("--predictions", self.predictions, report.predictions)
        if self.plots:
            Path(self.plots).mkdir(parents=True, exist_ok=True)
            for name, figure in report.figures().items():
                image = io.BytesIO()
                figure.savefig(image, format="png")
                write_file("--plots", f"{self.plots}/{name}.png", image.getvalue())


def check_file(option: str, file: str) -> None:
    """Raise UserError if the file of an option such as `--json FILE` cannot be written."""
    path = Path(file)
    if path.is_dir():
        raise UserError(f"{option} {file}: cannot be written: Is a directory")
    if not path.parent.is_dir():
        raise UserError(f"{option} {file}: cannot be written: No such file or directory")
    if not _special(path):
        _check(option, file, path.absolute().parent)


def check_folder(option: str, folder: str) -> None:
    """Raise UserError if files cannot be written to a folder, which need not exist yet."""
    if Path(folder).exists() and not Path(folder).is_dir():
        raise UserError(f"{option} {folder}: cannot be written: File exists")
    _check(option, folder, Path(folder).absolute())


def write_file(option: str, file: str, content: bytes) -> None:
    """Write a file whole or not at all. Write the bytes directly to a symbolic link, a pipe or a device."""
    path = Path(file)
    try:
        if _special(path):
            path.write_bytes(content)
        else:
            open_store(str(path.absolute().parent)).write(path.name, content)
    except UserError as error:
        raise UserError(f"{option} {file}: {error}") from error
    except OSError as error:
        raise UserError(f"{option} {file}: cannot be written: {error.strerror}") from error


def _special(path: Path) -> bool:
    return path.is_symlink() or (path.exists() and not path.is_file())


def _check(option: str, place: str, folder: Path) -> None:
    try:
        open_store(str(folder)).check_access(write=True)
    except UserError as error:
        raise UserError(f"{option} {place}: {error}") from error
