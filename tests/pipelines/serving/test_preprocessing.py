"""What requests hold becomes the pixels that evaluation sees, or a status with a reason."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines.config.crop import CropConfig
from pipelines.data.images.crops import IMAGE_FILE, eval_view
from pipelines.registry.bundled_code import request_reader
from pipelines.serving.preprocessing import MAX_IMAGES, MAX_REQUEST_BYTES, Preprocessing, Refused
from tests.pipelines.conftest import COLOURS, SIZE, picture
from tests.pipelines.serving.requests_to_refuse import base64_of, bomb, file_of

CROP = CropConfig(image_size=SIZE, eval_resize=SIZE + 4, interpolation="bicubic", decoder="exact")
PICTURES = Preprocessing(crop=CROP, class_names=("azure", "lime", "scarlet"))


def test_an_image_is_what_evaluation_sees_of_it() -> None:
    file = file_of(picture(COLOURS["lime"], seed=1).resize((90, 60)), "JPEG")
    expected = eval_view(file, IMAGE_FILE, CROP)
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    found = PICTURES.read([file, base64_of(file), pixels, pixels.tolist(), [base64_of(file), base64_of(file)]])
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.stack([expected, expected, pixels, pixels, expected, expected]))


@pytest.mark.parametrize(
    ("value", "status", "reason"),
    [
        ("!!", 400, "image 0: not base64"),
        ("äöü", 400, "image 0: not base64"),
        (base64_of(b"hello"), 422, r"image 0: not an image \(5 bytes\)"),
        (b"hello", 422, r"image 0: not an image \(5 bytes\)"),
        (base64_of(bomb()), 413, r"image 0: .*pixels"),
        (base64_of(bomb(side=12_000)), 413, "image 0: 12000x12000 is more than 100,000,000 pixels"),
        (np.zeros((28, 28, 3), np.uint8), 422, f"image 0: 28x28x3, this model takes {SIZE}x{SIZE}x3"),
        ([[1, 2], [3]], 422, f"image 0: no regular shape, this model takes {SIZE}x{SIZE}x3"),
        ([], 422, f"image 0: 0, this model takes {SIZE}x{SIZE}x3"),
        (np.full((SIZE, SIZE, 3), 256), 422, "image 0: its values are not whole numbers from 0 to 255"),
        (np.full((SIZE, SIZE, 3), -1), 422, "image 0: its values are not whole numbers from 0 to 255"),
        (np.full((SIZE, SIZE, 3), 0.5), 422, "image 0: its values are not whole numbers from 0 to 255"),
        (3, 400, "image 0: neither base64 text nor an array, but int"),
        (None, 400, "image 0: neither base64 text nor an array, but NoneType"),
    ],
)
def test_what_is_no_image_is_refused(value: object, status: int, reason: str) -> None:
    with pytest.raises(Refused, match=f"^{reason}") as refused:
        PICTURES.read([value])
    assert refused.value.status == status


def test_too_many_and_too_much_are_refused_undecoded() -> None:
    with pytest.raises(Refused, match=f"holds 1 to {MAX_IMAGES:,} images, this one 0"):
        PICTURES.read([])
    with pytest.raises(Refused, match=f"this one {MAX_IMAGES + 1:,}"):
        PICTURES.read([b""] * (MAX_IMAGES + 1))
    with pytest.raises(Refused, match="more than 33,554,432 bytes") as refused:
        PICTURES.read(["A" * (MAX_REQUEST_BYTES * 4 // 3 + 1)])
    assert refused.value.status == 413


def test_an_answer_names_every_class() -> None:
    (answer,) = PICTURES.answers(np.array([[0.25, 0.5, 0.25]], dtype=np.float32))
    assert answer == {
        "class": "lime",
        "probability": 0.5,
        "probabilities": {"azure": 0.25, "lime": 0.5, "scarlet": 0.25},
    }


def test_classes_of_one_name_are_told_apart() -> None:
    about = {"class_names": ["crane", "dog", "crane"], "image_size": 4, "eval_resize": 4, "recipe": "x"}
    pictures = Preprocessing.of(about)
    assert pictures.class_names == ("crane (0)", "dog", "crane (2)")
    assert (pictures.crop.image_size, pictures.crop.decoder) == (4, "fast")


def test_a_model_carries_all_that_its_reader_imports_and_no_more(tmp_path: Path) -> None:
    reader = request_reader()
    for path, source in reader.files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(source.read_bytes())
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import {reader.module};"
        "print(*(m.__file__ for n, m in sys.modules.items() if n.split('.')[0] in ('infra', 'pipelines')));"
        "print(*{'torch', 'pyarrow', 'ray', 'mlflow'} & set(sys.modules))"
    )
    command = [sys.executable, "-I", "-B", "-c", script]
    ours, heavy = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split("\n")[
        :2
    ]
    imported = {str(Path(file).relative_to(tmp_path)) for file in ours.split()}
    assert imported == {path for path in reader.files if path.endswith(".py")}
    assert heavy == ""
    assert all("==" in requirement for requirement in reader.requirements)
