"""How prepare shows its progress on the driver."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class PrepareBar(Progress):
    """Images, MB/s and the time left; where the output is no terminal, a line per shard."""

    def __init__(self, console: Console) -> None:
        count = TextColumn("{task.completed:,} of {task.total:,} images")
        rate = TextColumn("{task.fields[rate]}")
        super().__init__(
            count, BarColumn(), rate, TimeRemainingColumn(), console=console, disable=not console.is_terminal
        )
        self.task = self.add_task("prepare", rate="")
        self.found: int | None = None  # bytes that an earlier run had written

    def show(self, done: int, total: int, size: int) -> None:
        """Rows done, rows in all, bytes written: the callback of `prepare`."""
        self.found = size if self.found is None else self.found
        rate = f"{(size - self.found) / 1e6 / (self.tasks[0].elapsed or 1):.1f} MB/s"
        self.update(self.task, completed=done, total=total, rate=rate)
        if not self.console.is_terminal:
            self.console.print(f"{done:,} of {total:,} images, {size / 1e6:,.1f} MB, {rate}")
