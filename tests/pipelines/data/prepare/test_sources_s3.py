"""Every kind of source reads the same from S3 as from a local folder; the server is a real one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.errors import UserError
from infra.s3_server import S3Server, serve_s3
from infra.storage import LocalStore, open_store
from pipelines.config.prepare import PrepareConfig
from pipelines.data.prepare.source import Source, SourceSample
from pipelines.data.prepare.sources import open_source
from pipelines.data.prepare.sources.parquet import ParquetRows
from pipelines.inference.sources import find_images
from tests.pipelines.conftest import written
from tests.pipelines.data import built
from tests.pipelines.data.built import put

KINDS: dict[str, Callable[[], dict[str, bytes]]] = {
    "imagenet": built.imagenet_files,
    "folders": built.folder_files,
    "webdataset": built.webdataset_files,
    "parquet": built.parquet_files,
    "cifar": built.cifar_archive,
    "idx": built.idx_files,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    try:
        with serve_s3(tmp_path_factory.mktemp("s3"), bucket="tests") as running, pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
            for key, value in running.environment.items():
                patch.setenv(key, value)
            yield running
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture
def both(server: S3Server, tmp_path: Path) -> Callable[[str], tuple[str, str]]:
    """The files of a kind in a local folder and below a prefix of the same name."""

    def make(kind: str) -> tuple[str, str]:
        files = KINDS[kind]()
        store = open_store(f"s3://{server.bucket}/sources/{kind}")
        for name, data in files.items():
            store.write(name, data)
        return str(put(tmp_path / kind, files)), store.uri

    return make


def plain(source: Source) -> list[tuple[object, ...]]:
    """All samples as comparable values."""

    def row(sample: SourceSample) -> tuple[object, ...]:
        image = sample.image if isinstance(sample.image, bytes) else sample.image.tobytes()
        return sample.split, sample.key, sample.label, image

    return [row(sample) for samples in source.splits.values() for sample in samples.read()]


def test_a_table_and_its_images_on_s3_are_the_same_as_locally(server: S3Server, tmp_path: Path) -> None:
    files = {f"photos/{index:02d}.jpg": built.jpeg(index) for index in range(8)}
    files["labels.csv"] = "".join(["path,label\n", *(f"{path},{path[8:9]}\n" for path in files)]).encode()
    store = open_store(f"s3://{server.bucket}/tables/one")
    for name, data in files.items():
        store.write(name, data)
    local = open_source(str(put(tmp_path / "one", files) / "labels.csv"))
    assert len(local.class_names) == 8
    assert plain(open_source(f"{store.uri}/labels.csv")) == plain(local)
    other = put(tmp_path / "other", {"labels.csv": files["labels.csv"]}) / "labels.csv"
    assert plain(open_source(str(other), columns=PrepareConfig(root=store.uri))) == plain(local)
    uris = files["labels.csv"].replace(b"photos/", f"{store.uri}/photos/".encode())
    named = put(tmp_path / "uris", {"labels.csv": uris}) / "labels.csv"
    assert [row[2:] for row in plain(open_source(str(named)))] == [row[2:] for row in plain(local)]


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_source_on_s3_is_the_same_as_locally(
    kind: str, both: Callable[[str], tuple[str, str]], tmp_path: Path
) -> None:
    local, remote = (open_source(where) for where in both(kind))
    assert (remote.description, remote.class_names, remote.rows) == (local.description, local.class_names, local.rows)
    assert remote.fingerprint == local.fingerprint
    assert plain(remote) == plain(local)
    if isinstance(remote.splits["train"], ParquetRows):
        return
    shards = [
        [shard.sha256 for shard in written(source, LocalStore(uri=str(tmp_path / name))).shards]
        for name, source in (("from-local", local), ("from-s3", remote))
    ]
    assert shards[0] == shards[1]


def test_one_archive_on_s3_is_a_source(server: S3Server) -> None:
    open_store(f"s3://{server.bucket}/alone").write(
        "cifar-10-binary.tar.gz", built.cifar_archive()["cifar-10-binary.tar.gz"]
    )
    source = open_source(f"s3://{server.bucket}/alone/cifar-10-binary.tar.gz")
    assert source.rows == {"train": 60, "test": 12}


def test_an_archive_written_anew_with_as_many_bytes_is_another_listing(server: S3Server) -> None:
    store = open_store(f"s3://{server.bucket}/anew")
    store.write("train-0.tar", built.tar_bytes([("a.jpg", b"1"), ("a.cls", b"1")]))
    before = open_source(store.uri, holdout=0)
    assert before.splits["train"].labels.tolist() == [1]
    store.write("train-0.tar", built.tar_bytes([("a.jpg", b"1"), ("a.cls", b"2")]))
    after = open_source(store.uri, holdout=0)
    assert after.listing != before.listing
    assert after.splits["train"].labels.tolist() == [2]


def test_nothing_there(server: S3Server) -> None:
    with pytest.raises(UserError, match=r"source s3://tests/no/such does not exist: there is nothing below it at"):
        open_source("s3://tests/no/such")


@pytest.mark.parametrize("kind", ["folders", "parquet"])
def test_images_to_be_classified_are_the_same_from_both(kind: str, both: Callable[[str], tuple[str, str]]) -> None:
    found = []
    for place in both(kind):
        images = find_images([place])
        pictures = [picture for part in images.parts for picture in images.read(part)]
        found.append([(each.id, each.path.removeprefix(f"{place}/"), bytes(each.record)) for each in pictures])
    assert found[0] == found[1]
    assert len(found[0]) > 10
