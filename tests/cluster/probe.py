"""What a run's folder holds, as one line of JSON: `python -m tests.cluster.probe URI`, on a machine of the cluster."""

from __future__ import annotations

import json
import sys

from infra.storage import open_store
from pipelines.checkpoint import FINISHED, RunFolder
from pipelines.data.order.ledger import Ledger


def main() -> None:
    folder = RunFolder(open_store(sys.argv[1]))
    newest = folder.newest(lambda _: None)
    ledger = Ledger.from_arrays(newest.ledger) if newest else None
    told = {
        "steps": folder.steps(),
        "finished": folder.read_json(FINISHED),
        "samples": ledger.total if ledger else 0,
        "epochs": [[each.once, each.never] for each in ledger.report().values()] if ledger else [],
        "records": [
            [record.step, record.metrics.get("train/loss"), record.metrics.get("test/accuracy")]
            for record in (newest.records if newest else ())
        ],
    }
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main()
