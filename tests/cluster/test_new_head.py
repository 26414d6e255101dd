"""A head that is lost with its disk: the new one has the runs, the registry and the champion of the old one."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.cluster.deployed import FILE, STORAGE, Cluster, deployed
from tests.cluster.hosts import missing
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(bool(missing()), reason=missing()),
]
CHAMPION = "registered-models/alias?name=mnist5k-resnet20&alias=champion"
BACKUPS = f"{STORAGE}/mlflow-database/resnet-ray-local"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with deployed(tmp_path_factory.mktemp("cluster"), bucket_elsewhere=True) as made:
        yield made


def champion(cluster: Cluster) -> tuple[str, str]:
    """Version and run of the champion, as MLflow on the head answers."""
    answer = json.loads(cluster.on_head(f"curl -s 'http://127.0.0.1:5000/api/2.0/mlflow/{CHAMPION}'"))
    return answer["model_version"]["version"], answer["model_version"]["run_id"]


def served(cluster: Cluster) -> str:
    """The answer of `serve.py` on the head to one image."""
    draw = (
        "from PIL import Image, ImageDraw; image = Image.new('L', (28, 28)); "
        "ImageDraw.Draw(image).line((14, 4, 14, 24), fill=255, width=3); image.save('/tmp/one.png')"
    )
    url, image = "http://127.0.0.1:8123", "--data-binary @/tmp/one.png -H 'Content-Type: image/png'"
    serve = (
        f'python -c "{draw}"; export RAY_ADDRESS=local; '
        "python pipelines/serve.py --model models:/mnist5k-resnet20@champion --port 8123 --cpus 1 > ~/serve.log 2>&1 & "
        f"for second in $(seq 200); do curl -sf {url}/health > /dev/null && break; sleep 1; done; "
        f"curl -s {image} {url}/invocations; kill %1; wait"
    )
    answer = cluster.on_head(serve, timeout=300)
    assert '"predictions"' in answer, answer + cluster.on_head("cat ~/serve.log")
    return answer


def backed_up(cluster: Cluster) -> bool:
    """Whether a backup that the head has stored by itself has the champion."""
    script = (
        "import gzip, sqlite3, infra.storage; "
        f"store = infra.storage.open_store('{BACKUPS}'); names = [name for name, _ in store.list()]; "
        "open('/tmp/copy.db', 'wb').write(gzip.decompress(store.read(names[-1]))) if names else None; "
        "asked = 'SELECT count(*) FROM registered_model_aliases WHERE alias = \"champion\"'; "
        "print(sqlite3.connect('/tmp/copy.db').execute(asked).fetchone()[0] if names else 0)"
    )
    return cluster.on_head(f"python - << 'END'\n{script}\nEND").strip() == "1"


def test_a_new_head_serves_the_champion_of_the_old_one(cluster: Cluster) -> None:
    cluster.submit(
        "ray job submit -- python pipelines/train.py mnist5k --set run.name=first --set schedule.length=2", "first"
    ).finished()
    before = champion(cluster)
    answer = served(cluster)
    wait_until(lambda: backed_up(cluster), 150, "backup with the champion", every=5)
    cluster.replace_head()
    cluster.user(f"ray down -y {FILE}", timeout=200, check=False)  # the laptop still knows the head that is gone
    cluster.up()
    ask = f"curl -s 'http://127.0.0.1:5000/api/2.0/mlflow/{CHAMPION}'"
    wait_until(lambda: "model_version" in cluster.on_head(ask), 180, "answer of MLflow", every=2)
    assert "MLflow's database was restored from" in cluster.on_head("cat ~/resnet-ray-state/head.log")
    assert champion(cluster) == before
    assert served(cluster) == answer


def test_a_pods_hook_returns_when_the_node_is_empty(cluster: Cluster) -> None:
    """Ten minutes before its time is over, and its raylet is gone then."""
    host = cluster.workers[-1]
    host.run("cd resnet-ray; . infra/node.sh; python -m infra.notice --now --seconds 900", timeout=300)
    assert host.run("pgrep -x raylet", check=False).stdout == ""
