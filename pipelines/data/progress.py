"""How prepare shows its progress on the driver."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class PrepareBar(Progress):
    """Images, images/s and the time left; where the output is no terminal, a line per shard."""

    def __init__(self, console: Console) -> None:
        count = TextColumn("{task.completed:,} of {task.total:,} images")
        rate = TextColumn("{task.fields[rate]}")
        super().__init__(
            count, BarColumn(), rate, TimeRemainingColumn(), console=console, disable=not console.is_terminal
        )
        self.task = self.add_task("prepare", rate="")
        self.found: tuple[int, int] | None = None  # images and bytes that an earlier run had written
        self.rate = ""

    def show(self, done: int, total: int, size: int) -> None:
        """Rows done, rows in all, bytes written: the callback of `prepare`."""
        if self.found is None:
            self.found = (done, size)
            self.reset(self.task)  # the clock starts when the shards do, not while archives are listed
        seconds = self.tasks[0].elapsed or 1
        written, megabytes = done - self.found[0], (size - self.found[1]) / 1e6
        self.rate = f"{written / seconds:,.0f} images/s, {megabytes / seconds:.1f} MB/s"
        self.update(self.task, completed=done, total=total, rate=self.rate)
        if not self.console.is_terminal:
            self.console.print(f"{done:,} of {total:,} images, {size / 1e6:,.1f} MB, {self.rate}")
