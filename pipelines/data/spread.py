"""The same work on many things, as Ray Data tasks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from infra.capacity import ingest_options
from infra.errors import UserError, of_the_machine
from pipelines.data.execution import quiet, within

_Item = TypeVar("_Item")


def spread(work: Callable[[_Item], Any], items: Sequence[_Item]) -> Iterator[Any]:
    """Call `work` on each item in a task of its own; yields what it returns, which JSON can hold, as tasks end.

    Raises:
        UserError: one of them raised it; it is told as it is, not as the traceback of a task.
    """
    if not items:
        return
    import ray.data

    references = [ray.put(item) for item in items]

    def run(row: dict[str, Any]) -> dict[str, str]:
        try:
            return {"result": json.dumps({"value": work(ray.get(references[row["item"]]))})}
        except (UserError, OSError) as error:
            told = error if isinstance(error, UserError) else of_the_machine(error)
            if told is None:
                raise
            return {"result": json.dumps({"error": str(told)})}

    rows = ray.data.from_items([{"item": index} for index in range(len(items))], override_num_blocks=len(items))
    for row in within(quiet(rows.map(run, num_cpus=1, **ingest_options()))).iter_rows():
        result = json.loads(row["result"])
        if "error" in result:
            raise UserError(result["error"])
        yield result["value"]
