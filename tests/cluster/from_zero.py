"""A driver that holds a GPU as a worker does, and reads a stream: `python -m tests.cluster.from_zero FOLDER ROWS GPUS`.

Prints as JSON which nodes there were: at most at once, and in the end; and where data tasks have run. On a machine
without GPUs a worker of Ray Train would not start, so that a placement group stands for it.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import infra.cluster
from infra.cluster_rules import ROLE
from infra.errors import UserError

SIZE = 160
LOOK_S, GONE_S = 0.5, 90.0
ALIVE = 0  # of GcsNodeInfo.GcsNodeState


def refused() -> dict[str, int]:
    """How much the cluster may come to have, as whoever asks for more is told."""
    told = {}
    for kind, cpus, gpus in (("CPU", 1000, 0), ("GPU", 1, 1000)):
        try:
            infra.cluster.connect(min_cpus=cpus, gpus=gpus)
        except UserError as error:
            told[kind] = int(re.findall(r"has (\d+), with every node that may come", str(error))[0])
    return told


def nodes() -> Counter[str]:
    """Workers by type."""
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled, and without stubs

    known = GcsClient(address=ray.get_runtime_context().gcs_address).get_all_node_info().values()
    return Counter(node.node_type_name for node in known if node.state == ALIVE and not node.is_head_node)


def main(folder: Path, rows: int, gpus: int) -> None:
    told: dict[str, object] = {"refused": refused()}
    infra.cluster.connect(min_cpus=2, gpus=gpus)
    import ray
    from ray._private.state import available_resources_per_node

    group = ray.util.placement_group([{"GPU": 1, "CPU": 1}] * gpus)
    ray.get(group.ready())
    most, seconds, over = nodes(), Counter[str](), threading.Event()

    def watch() -> None:
        while not over.wait(LOOK_S):
            for name, count in nodes().items():
                most[name] = max(most[name], count)
            free = available_resources_per_node()
            for node in ray.nodes():
                role = node["Labels"].get(ROLE)
                if node["Alive"] and role:
                    held = node["Resources"].get("CPU", 0) - free.get(node["NodeID"], {}).get("CPU", 0)
                    seconds[role] += LOOK_S * (held - bool(node["Resources"].get("GPU")))

    watching = threading.Thread(target=watch)
    watching.start()
    if rows:
        read(folder, rows)
    ray.util.remove_placement_group(group)
    over.set()
    watching.join()
    deadline = time.monotonic() + GONE_S
    while nodes() and time.monotonic() < deadline:
        time.sleep(1)
    sys.stdout.write(f"{json.dumps({**told, 'most': most, 'end': nodes(), **seconds})}\n")


def read(folder: Path, rows: int) -> None:
    """The stream of a run of one worker, as fast as it comes."""
    from infra.storage import open_store
    from pipelines.config.crop import CropConfig
    from pipelines.data.order.ledger import Ledger
    from pipelines.data.prepare.prepare import PrepareConfig, prepare
    from pipelines.data.prepare.sources import open_source
    from pipelines.training.stream import Stream, build_dataset

    store = open_store(str(folder / "data"))
    stream = Stream(
        manifest=prepare(open_source("mnist5k"), store, PrepareConfig()),
        data_uri=store.uri,
        run_uri=str(folder / "run"),
        crop=CropConfig(image_size=SIZE, train_crop="random_resized", eval_resize=SIZE),
        sizes=((0, SIZE),),
        split="train",
        seed=0,
        total_samples=rows,
        step_rows=64,
        task_mb=2,
        ordered=False,
        worker_cpus=1,
    )
    (part,) = build_dataset(stream, 0, Ledger(4000), 1).streaming_split(1, equal=True)
    blocks = part.iter_batches(batch_size=None, batch_format="numpy")  # type: ignore[arg-type]  # a block whole
    assert sum(len(block["id"]) for block in blocks) >= rows


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
