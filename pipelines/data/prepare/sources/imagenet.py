"""ImageNet (ILSVRC2012), read directly from its original archives; nothing is unpacked.

ILSVRC2012_img_train.tar contains one tar per class. ILSVRC2012_img_val.tar contains the 50,000 validation images; their
labels are in ILSVRC2012_devkit_t12.tar.gz.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

from infra.errors import UserError
from pipelines.data.prepare.source import TEST, TRAIN, Contents, Source
from pipelines.data.prepare.sources.devkit import Devkit, read_devkit
from pipelines.data.prepare.sources.index import IndexBuilder, joined, kept_contents
from pipelines.data.prepare.sources.names import Names
from pipelines.data.prepare.sources.place import IMAGE_SUFFIXES, Place
from pipelines.data.prepare.sources.ranges import Ranges, fingerprint
from pipelines.data.prepare.sources.splits import SplitChoice
from pipelines.data.prepare.sources.tar import Member, open_tar, stored_members

TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
EXPECTS = f"ImageNet's archives ({TRAIN_TAR}, {VAL_TAR}, {DEVKIT})"

_MOST_DEVKIT_BYTES = 256 << 20
_THREADS = 16  # class tars that are listed at once in remote storage, where every request takes long
_VAL_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


def open_imagenet(place: Place, choice: SplitChoice) -> Source | None:
    """Open the three archives of a folder; None if neither of the large ones is there.

    Raises:
        UserError: an archive is missing. At the first access to the contents: an archive is truncated or has
            unexpected members.
    """
    archives = (TRAIN_TAR, VAL_TAR, DEVKIT)
    if not {TRAIN_TAR, VAL_TAR} & set(place.files):
        return None
    if place.is_file:
        raise UserError(f"{place.text} is one of ImageNet's three archives: name the folder that holds them")
    for name in archives:
        if name not in place.files:
            raise UserError(f"{place.text} has archives of ImageNet but no {name}: put it in the same folder")
    listing = place.listing(archives)
    return Source(
        description="ImageNet's archives (ILSVRC2012; the validation images are the test split)",
        side=0,
        channels=3,
        pixels="stored",  # as in the training that published results come from
        listing=listing,
        load=lambda: kept_contents(choice.keep, listing, place.store, lambda: _index(place)),
    )


def _index(place: Place) -> Contents:
    devkit = read_devkit(place.read(DEVKIT, most=_MOST_DEVKIT_BYTES), f"{place.text}/{DEVKIT}")
    splits = {TRAIN: _index_train(place, devkit), TEST: _index_validation(place, devkit)}
    named = "\n".join(devkit.class_names).encode()
    return Contents(
        class_names=devkit.class_names,
        splits=splits,
        fingerprint=fingerprint(splits, named, splits[TEST].labels.tobytes()),
    )


def _index_train(place: Place, devkit: Devkit) -> Ranges:
    length, where = place.files[TRAIN_TAR], f"{place.text}/{TRAIN_TAR}"
    tars = list(stored_members(place.store, open_tar(place.store, TRAIN_TAR, length=length), where))
    by_wnid = {tar.name.removesuffix(".tar"): tar for tar in tars}
    for wnid in devkit.wnids:
        if wnid not in by_wnid:
            raise UserError(f"{where} holds no {wnid}.tar, a class that {DEVKIT} names: is it the whole archive?")
    unknown = sorted(set(by_wnid) - set(devkit.wnids))
    if unknown or len(tars) != len(by_wnid):
        what = f"{by_wnid[unknown[0]].name}, which is not the tar of a class" if unknown else "one class twice"
        raise UserError(f"{where} holds {what}")
    objects = Names.of([TRAIN_TAR])

    def index_class(label: int) -> Ranges:
        return _index_class(place, devkit.wnids[label], label, by_wnid[devkit.wnids[label]], objects)

    with ThreadPoolExecutor(_THREADS if place.store.is_remote else 1) as pool:
        return joined(list(pool.map(index_class, range(len(devkit.wnids)))))


def _index_class(place: Place, wnid: str, label: int, tar: Member, objects: Names) -> Ranges:
    where = f"{place.text}/{TRAIN_TAR}/{tar.name}"
    index, seen = IndexBuilder(), set()
    for image in stored_members(place.store, open_tar(place.store, TRAIN_TAR, start=tar.start, length=tar.size), where):
        if not image.name.lower().endswith(IMAGE_SUFFIXES) or image.name in seen:
            why = "there twice" if image.name in seen else "not an image file"
            raise UserError(f"{where}: member {image.name!r} is {why}")
        seen.add(image.name)
        index.add(0, tar.start + image.start, image.size, label, f"{TRAIN}/{wnid}/{image.name}")
    if not seen:
        raise UserError(f"{where} holds no images")
    return index.ranges(place.store, TRAIN, objects)


def _index_validation(place: Place, devkit: Devkit) -> Ranges:
    where = f"{place.text}/{VAL_TAR}"
    index, seen = IndexBuilder(), set()
    for image in stored_members(place.store, open_tar(place.store, VAL_TAR, length=place.files[VAL_TAR]), where):
        match = _VAL_IMAGE.fullmatch(PurePosixPath(image.name).name)
        number = int(match[1]) if match else 0
        if not 1 <= number <= len(devkit.validation) or number in seen:
            raise UserError(
                f"{where}: member {image.name!r} is not one of images 1 to {len(devkit.validation):,}, "
                "or is there twice"
            )
        seen.add(number)
        label = int(devkit.validation[number - 1])
        # The key names the class, like the folders that torchvision unpacks to.
        index.add(0, image.start, image.size, label, f"val/{devkit.wnids[label]}/{PurePosixPath(image.name).name}")
    if len(seen) != len(devkit.validation):
        raise UserError(f"{where} holds {len(seen):,} images, {DEVKIT} has labels for {len(devkit.validation):,}")
    return index.ranges(place.store, TEST, Names.of([VAL_TAR]))
