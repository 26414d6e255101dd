"""Tables of paths and labels as people have them, and how they go wrong."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from infra.errors import UserError
from infra.storage import LocalStore
from pipelines.config.prepare import PrepareConfig
from pipelines.data.prepare.report import PrepareReport, read_report, write_report
from pipelines.data.prepare.shard_plan import plan_shards, stored_form
from pipelines.data.prepare.shard_writer import write_shard
from pipelines.data.prepare.source import Source
from pipelines.data.prepare.sources import open_source
from tests.pipelines.data.built import jpeg, parquet_bytes, put

Open = Callable[..., Source]
NAMES = ("ant", "bee", "crab")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """30 images in photos/, ten of each class in turn, without folders of classes."""
    put(tmp_path, {f"photos/{index:02d}.jpg": jpeg(index) for index in range(30)})
    return tmp_path


def rows(count: int = 30) -> list[tuple[str, str]]:
    return [(f"photos/{index:02d}.jpg", NAMES[index % 3]) for index in range(count)]


def csv(header: str = "path,label", lines: Sequence[tuple[str, ...]] | None = None, end: str = "\n") -> str:
    return end.join([header, *(",".join(line) for line in (rows() if lines is None else lines))]) + end


def opened(folder: Path, content: str | bytes, name: str = "labels.csv", **settings: Any) -> Source:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    holdout, validation = settings.pop("holdout", 0.2), settings.pop("validation", 0.0)
    config = PrepareConfig(**settings)
    source = open_source(str(folder / name), holdout=holdout, validation=validation, columns=config)
    assert source.total_rows
    return source


def labels_of(source: Source) -> dict[str, Any]:
    """The class name, or the tuple of class names, of each file."""
    sets, names = source.label_sets, source.class_names
    return {
        Path(part.key(place)).name: tuple(names[each] for each in sets[label]) if sets else names[label]
        for part in source.splits.values()
        for place, label in enumerate(part.labels.tolist())
    }


EXPECTED = {f"{index:02d}.jpg": NAMES[index % 3] for index in range(30)}


@pytest.mark.parametrize(
    ("name", "content", "settings"),
    [
        ("labels.csv", csv(), {}),
        ("labels.csv", csv("Image_Path,species", end="\r\n"), {}),  # the only other column has the labels
        ("labels.csv", "\ufeff" + csv().replace(",", ";"), {}),  # a spreadsheet's
        ("labels.csv", csv().encode("utf-16"), {}),
        ("labels.tsv", csv().replace(",", "\t"), {}),
        ("labels.csv", csv("a,b"), {"path_column": "a", "label_column": "b"}),
        ("labels.csv", csv("path,label,weight", [(*row, "3.5") for row in rows()]), {}),
        ("labels.csv", csv(lines=[(f'"{path}"', f'" {label} "') for path, label in rows()]), {}),
        ("labels.csv", csv(lines=[(path.replace("/", "\\"), label) for path, label in rows()]), {}),
        ("labels.csv", csv(lines=[(f"C:\\me\\{path}".replace("/", "\\"), label) for path, label in rows()]), {}),
        ("labels.csv", csv(lines=[(f"/elsewhere/{path}", label) for path, label in rows()]), {}),
        ("labels.csv", csv(lines=[(f"./{path}".replace("p", "%70", 1), label) for path, label in rows()]), {}),
        ("labels.csv", csv("id,breed", [(path[7:9], label) for path, label in rows()]), {"root": "photos"}),
        ("l.jsonl", "".join(json.dumps({"file": path, "label": label}) + "\n\n" for path, label in rows()), {}),
    ],
)
def test_tables_as_people_have_them(photos: Path, name: str, content: str | bytes, settings: Mapping[str, str]) -> None:
    settings = {key: str(photos / value) if key == "root" else value for key, value in settings.items()}
    source = opened(photos, content, name, **settings)
    assert source.class_names == NAMES
    assert labels_of(source) == EXPECTED
    assert source.rows == {"train": 24, "test": 6}


def test_absolute_paths_of_this_machine_need_no_root(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    source = opened(other, csv(lines=[(str(photos / path), label) for path, label in rows()]))
    assert labels_of(source) == EXPECTED
    again = opened(photos, csv(lines=[(path[7:], label) for path, label in rows()]), root=str(photos / "photos"))
    assert again.fingerprint == source.fingerprint  # neither the place nor the form of the paths counts


@pytest.mark.parametrize("separator", ["/", "\\"])
def test_only_the_folder_that_all_paths_share_is_listed(photos: Path, separator: str) -> None:
    put(photos, {"elsewhere/x.jpg": jpeg(50)})
    source = opened(photos, csv(lines=[(path.replace("/", separator), label) for path, label in rows(29)]))
    assert list(source.contents.unlabelled) == ["photos/29.jpg"]


def test_the_order_of_the_rows_decides_nothing(photos: Path) -> None:
    one = opened(photos, csv())
    other = opened(photos, csv(lines=[*reversed(rows())]))
    assert one.fingerprint == other.fingerprint


def test_a_parquet_of_paths_is_a_table_and_one_of_images_is_not(photos: Path) -> None:
    import pyarrow as pa

    paths, labels = zip(*rows(), strict=True)
    pq.write_table(pa.table({"image": paths, "label": labels}), photos / "labels.parquet")
    assert labels_of(open_source(str(photos / "labels.parquet"))) == EXPECTED
    (photos / "train.parquet").write_bytes(parquet_bytes([jpeg(0), jpeg(1), jpeg(2), jpeg(3)], [0, 1, 0, 1]))
    assert open_source(str(photos / "train.parquet")).description.startswith("Parquet files of")


def test_names_in_other_compositions_and_with_commas_are_found(photos: Path) -> None:
    put(photos, {f"photos/{unicodedata.normalize('NFD', 'é')}, {index}.jpg": jpeg(40 + index) for index in range(2)})
    extra = [(f'"photos/é, {index}.jpg"', "Élan") for index in range(2)]
    source = opened(photos, csv(lines=[*rows(), *extra]))
    assert source.class_names == (*NAMES, "Élan")
    assert source.total_rows == 32


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (("10", "9", "2"), ("2", "9", "10")),
        (("10.0", "9.0", "2.0"), ("2.0", "9.0", "10.0")),
        (("10", "b", "2"), ("10", "2", "b")),
    ],
)
def test_numbers_are_sorted_by_value_and_words_by_letters(
    photos: Path, labels: tuple[str, ...], names: tuple[str, ...]
) -> None:
    source = opened(photos, csv(lines=[(path, labels[index % 3]) for index, (path, _) in enumerate(rows())]))
    assert source.class_names == names


def test_classes_can_be_given_in_an_order_and_may_be_more(photos: Path) -> None:
    classes = ("crab", "dog", "bee", "ant")
    source = opened(photos, csv(), classes=classes)
    assert source.class_names == classes
    assert labels_of(source) == EXPECTED


def test_a_split_column_is_kept(photos: Path) -> None:
    words = ["Train", "Train", "Train", "val", "val", "val", "test", "test", "test", "Train"]
    lines = [(*row, words[index // 3]) for index, row in enumerate(rows())]
    source = opened(photos, csv("path,label,split", lines))
    assert source.rows == {"train": 12, "validation": 9, "test": 9}
    assert source.description == "image files that labels.csv lists (column split)"
    only_val = [(*row, "train" if index < 24 else "val") for index, row in enumerate(rows())]
    assert opened(photos, csv("path,label,split", only_val)).rows == {"train": 24, "test": 6}
    assert opened(photos, csv("path,label,split", only_val), split_column="none").rows == {"train": 24, "test": 6}


def test_groups_stay_whole_and_classes_balanced(photos: Path) -> None:
    lines = [(*row, f"g{index // 2}") for index, row in enumerate(rows())]
    source = opened(photos, csv("path,label,patient", lines), group_column="patient", validation=0.2)
    group = {Path(path).name: name for path, _, name in lines}
    of_split = {
        split: {group[Path(part.key(place)).name] for place in range(len(part))}
        for split, part in source.splits.items()
    }
    assert not of_split["train"] & of_split["test"] and not of_split["train"] & of_split["validation"]
    assert not of_split["validation"] & of_split["test"]
    for split, part in source.splits.items():
        assert set(part.labels.tolist()) == {0, 1, 2}, split
    assert 4 <= source.rows["test"] <= 10


MULTI = [("ant",), (), ("ant", "crab"), ("bee", "crab"), ("crab",)]


@pytest.mark.parametrize("form", ["separator", "json", "parquet", "columns", "every column", "rows"])
def test_several_labels_per_image(photos: Path, form: str) -> None:
    import pyarrow as pa

    sets = {path: MULTI[index % 5] for index, (path, _) in enumerate(rows())}
    match form:
        case "separator":
            lines: list[tuple[str, ...]] = [(path, " | ".join(each)) for path, each in sets.items()]
            source = opened(photos, csv(lines=lines), label_separator="|")
        case "json":
            text = "".join(json.dumps({"path": path, "tags": each}) + "\n" for path, each in sets.items())
            source = opened(photos, text, "labels.jsonl")
        case "parquet":
            pq.write_table(pa.table({"path": list(sets), "tags": [*map(list, sets.values())]}), photos / "l.parquet")
            source = open_source(str(photos / "l.parquet"), holdout=0.2)
        case "columns" | "every column":
            lines = [(path, *(str(int(name in each)) for name in NAMES)) for path, each in sets.items()]
            wanted = NAMES if form == "columns" else ("*",)
            source = opened(photos, csv(",".join(("path", *NAMES)), lines), label_columns=wanted)
        case _:
            lines = [(path, name) for path, each in sets.items() for name in each]
            source = opened(photos, csv(lines=lines), multi_label=True)
            sets = {path: each for path, each in sets.items() if each}  # an image of no class has no row
    assert source.class_names == NAMES
    assert labels_of(source) == {Path(path).name: each for path, each in sets.items()}
    test = source.splits["test"].labels.tolist()
    assert source.label_sets is not None
    assert {each for label in test for each in source.label_sets[label]} == {0, 1, 2}
    assert 4 <= len(test) <= 8  # about a fifth of each class, none lost


def test_rows_without_file_or_label_can_be_left_out_and_are_reported(photos: Path) -> None:
    content = csv(lines=[*rows(28), ("photos/x.jpg", "ant"), ("photos/28.jpg", "")])
    source = opened(photos, content, max_bad_images=2)
    assert source.total_rows == 28
    assert list(source.contents.unusable) == [
        ("photos/x.jpg", "row 30 of the table names no file"),
        ("photos/28.jpg", "row 31 of the table has no label"),
    ]
    assert list(source.contents.unlabelled) == ["photos/29.jpg"]
    assert "left out: 1 image that no row names (photos/29.jpg): see unlabelled.parquet" in source.notes
    assert "guessed by name: prepare.path_column=path, prepare.label_column=label" in source.notes


def test_the_report_has_every_row_and_image_that_was_left_out(photos: Path, tmp_path: Path) -> None:
    content = csv(lines=[*rows(25), ("photos/x.jpg", "ant"), ("photos/00.jpg", "ant")])
    put(photos, {"photos/24.jpg": jpeg(0)})  # as 00.jpg
    source, store = opened(photos, content, max_bad_images=1), LocalStore(uri=str(tmp_path / "data"))
    config = PrepareConfig(min_shards=1)
    jobs = plan_shards(source, stored_form(source, config), config)
    shards = [write_shard(store, job, source.splits[job.split], source.label_sets) for job in jobs]
    write_report(store, source, {}, jobs, shards)
    report = read_report(store)
    assert report is not None
    assert (report.images, report.rejected, report.leaked + report.repeated) == (25, 1, 1)
    assert report.classes == {"train": [7, 6, 6], "test": [2, 2, 2]}
    assert [line.split() for line in report.class_lines(source.class_names)][1] == ["ant", "7", "2"]
    left = pq.read_table(Path(store.uri, "unlabelled.parquet")).to_pydict()
    assert left == {"key": [f"photos/{index}.jpg" for index in range(25, 30)]}
    rejected = pq.read_table(Path(store.uri, "rejected.parquet")).to_pylist()
    assert rejected == [{"split": "", "key": "photos/x.jpg", "reason": "row 27 of the table names no file"}]


def test_of_many_classes_the_report_shows_the_largest_and_the_smallest(photos: Path) -> None:
    report = PrepareReport(
        images=0, kinds={}, leaked=0, repeated=0, rejected=0, listing="", classes={"train": [*range(100)]}
    )
    lines = [line.split() for line in report.class_lines([f"c{index}" for index in range(100)])]
    assert lines[0] == ["class", "train"]
    assert [line[0] for line in lines[1:4]] == ["c99", "c98", "c97"]
    assert lines[11] == ["80", "classes", "in", "between", "…"]
    assert [line[0] for line in lines[-2:]] == ["c1", "c0"]


def test_rows_that_repeat_another_are_counted(photos: Path) -> None:
    source = opened(photos, csv(lines=[*rows(), rows()[4]]))
    assert (source.total_rows, "1 row that repeat an earlier row" in source.notes) == (30, True)


BAD: dict[str, tuple[str | bytes, dict[str, Any], str]] = {
    "no such column": (
        csv(),
        {"label_column": "lable"},
        r"no column 'lable' \(did you mean label\?\): it has path, label",
    ),
    "no such column, and no guess": (csv("a,b"), {"label_column": "c"}, r"prepare.label_column: .* no column 'c'"),
    "no such root": (csv(), {"root": "phots"}, r"prepare.root: source .*phots does not exist \(did you mean .*photos"),
    "no paths": (
        csv("a,b"),
        {},
        r"no column is called like the paths \(columns: a, b\): name one with --set prepare.path",
    ),
    "two of labels": (
        csv("path,label,class", [(*row, "x") for row in rows()]),
        {},
        r"2 columns \(label, class\) may have the labels .* name one with --set prepare.label_column",
    ),
    "no header": (csv("photos/00.jpg,ant"), {}, "has no header: its first line must name the columns"),
    "empty": ("", {}, "no column is called like the paths"),
    "files are missing": (
        csv(lines=[*rows(), ("photos/x.jpg", "ant"), ("00.jpg", "ant")]),
        {},
        r"2 rows without a file below .*: photos/x.jpg \(row 32 of .*; 00.jpg .*max_bad_images=2",
    ),
    "no file is there": (
        csv(lines=[(path[7:], label) for path, label in rows()]),
        {},
        r"00.jpg.* set prepare.root=.*/photos",
    ),
    "an empty label": (
        csv(lines=[*rows(29), ("photos/29.jpg", " ")]),
        {},
        r": 1 row without a label: photos/29.jpg \(row 31",
    ),
    "two labels": (
        csv(lines=[*rows(), ("photos/00.jpg", "bee")]),
        {},
        r"contradict .* 1 image: photos/00.jpg \(rows 2 and 32\) has two labels, ant and bee.*prepare.multi_label=true",
    ),
    "two splits": (
        csv("path,label,split", [*((*row, "train") for row in rows()), ("photos/00.jpg", "ant", "test")]),
        {},
        r"photos/00.jpg \(rows 2 and 32\) is in two splits, train and test",
    ),
    "a class only in the test": (
        csv("path,label,split", [(*row, "test" if row[1] == "bee" else "train") for row in rows()]),
        {},
        r"class bee has images in split test but none in split train",
    ),
    "an unknown split": (
        csv("path,label,split", [(*row, "trian") for row in rows()]),
        {},
        r"column split has the value 'trian' \(did you mean train\?\): expected train, val or test",
    ),
    "a torn group": (
        csv(
            "path,label,split,who", [(*row, "train" if i < 20 else "test", f"g{i % 4}") for i, row in enumerate(rows())]
        ),
        {"group_column": "who"},
        r"group 'g0' of who has images in split train and in split test",
    ),
    "one group": (
        csv("path,label,who", [(*row, "me") for row in rows()]),
        {"group_column": "who"},
        r"no test split can be held out in whole groups of who \(1 group\)",
    ),
    "latin-1": (
        csv(lines=[*rows(29), ("photos/29.jpg", "é")]).encode("latin-1"),
        {},
        r"is not UTF-8 \(near .*29.jpg,\\xe9\)",
    ),
    "an open quote": (csv(lines=[*rows(29), ('"photos/29.jpg', "ant")]), {}, r"line 31 cannot be read: unexpected end"),
    "a comma too many": (
        csv(lines=[*rows(29), ("photos/29.jpg", "ant", "x")]),
        {},
        "line 31 has 3 values, the header has 2",
    ),
    "neither 0 nor 1": (
        csv("path,ant,bee", [(path, "1", "-1") for path, _ in rows()]),
        {"label_columns": ("ant", "bee")},
        r"row 2 has '-1' in column bee, expected 0 or 1",
    ),
    "a class is missing": (csv(), {"classes": ("ant", "bee", "crabs")}, r"lacks the label 'crab' .*did you mean crabs"),
    "a file as root": (csv(), {"root": "labels.csv"}, "prepare.root must be a folder"),
    "leads out": (csv(lines=[("../../etc/passwd", "ant"), *rows()]), {}, r"1 row without a file below .*passwd"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_told_in_one_line(photos: Path, case: str) -> None:
    content, settings, message = BAD[case]
    if "root" in settings:
        settings = {"root": str(photos / settings["root"])}
    with pytest.raises(UserError, match=message) as caught:
        opened(photos, content, **settings)
    assert "\n" not in str(caught.value)


def test_json_lines_that_are_none(photos: Path) -> None:
    with pytest.raises(UserError, match="line 1 is no JSON object: write one object on each line"):
        opened(photos, "[1]\n", "l.jsonl")
    with pytest.raises(UserError, match=r"line 2 is no JSON object: Expecting"):
        opened(photos, '{"path": "a", "label": "b"}\n{"path"\n', "l.jsonl")
    with pytest.raises(UserError, match=r"row 1 has the label 0.5, expected a word or a whole number"):
        opened(photos, '{"path": "photos/00.jpg", "label": 0.5}\n', "l.jsonl")


def test_words_that_look_joined_or_misspelt_are_pointed_out(photos: Path) -> None:
    lines = [*rows(28), ("photos/28.jpg", "ant|bee"), ("photos/29.jpg", "Ant")]
    notes = " ".join(opened(photos, csv(lines=lines)).notes)
    assert 'ant|bee look like several labels: if they are, prepare with --set prepare.label_separator="|"' in notes
    assert "differ from another in case only, such as Ant and ant" in notes
