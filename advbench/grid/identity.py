"""Which data a run is about: what keys hold of it, and `data.json`, which says so beside the results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from advbench.data.base import Data
from advbench.data.datasets import Dataset, load_dataset
from advbench.data.ood import OodSet, identify_ood
from advbench.errors import InputError
from advbench.grid.spec import RunSpec

DATA = "data.json"
MOST_CLASSES, MOST_VALUES = 100_000, 2**22  # that a file may state; values are those of an image


class DataIdentity(NamedTuple):
    """What keys and costs need to know of a data set.

    Attributes:
        name: its registered name, without path.
        digest: SHA-256 of its content.
        train_count: training images.
        test_count: test images.
    """

    name: str
    digest: str
    train_count: int
    test_count: int


class Shape(NamedTuple):
    """What nets are built for: the images of a data set, and its classes."""

    channels: int
    height: int
    width: int
    classes: int


class Identity(NamedTuple):
    """Which data a run is about.

    Attributes:
        data: what keys hold of the data set.
        ood: data sets whose images are shown as well.
        shape: of the data set's images; None where that is not known.
    """

    data: DataIdentity
    ood: tuple[OodSet, ...] = ()
    shape: Shape | None = None


def identity_text(identity: Identity) -> str:
    """The content of `data.json`, by which keys can be checked and results reported without the data."""
    data, ood, shape = identity
    values: dict[str, Any] = {
        "name": data.name,
        "sha256": data.digest,
        "train_count": data.train_count,
        "test_count": data.test_count,
    }
    if shape:
        values["shape"] = shape._asdict()
    if ood:
        values["foreign"] = [
            {
                "name": each.name,
                "label": each.label,
                "sha256": each.digest,
                "images": each.images,
                "scale": each.scale,
            }
            for each in ood
        ]
    return json.dumps(values, indent=1) + "\n"


def is_about(identity: Identity, spec: RunSpec) -> bool:
    """Whether these are the data sets that a spec names, as far as names tell."""
    kinds = [name.partition(":")[0] for name in (spec.dataset, *spec.ood)]
    scales = {each.scale for each in identity.ood}
    return kinds == [identity.data.name, *(each.name for each in identity.ood)] and scales <= {spec.ood_scale}


def identify(dataset: Dataset, ood: Sequence[OodSet] = ()) -> Identity:
    """What a plan needs to know of a data set, and of those whose images are shown as well."""
    kind = dataset.name.partition(":")[0]
    data = DataIdentity(kind, dataset.digest, len(dataset.train), len(dataset.test))
    return Identity(data, tuple(ood), Shape(*dataset.train.shape, dataset.train.classes))


def identify_data(spec: RunSpec, data_root: str | None) -> Identity:
    """The data of a spec, which is downloaded if need be.

    Raises:
        InputError: it is absent or malformed.
    """
    ood = identify_ood(spec.ood, data_root, spec.ood_scale)
    return identify(load_dataset(spec.dataset, data_root), ood)


def blank(shape: Shape, name: str) -> Data:
    """One black image, in place of training data: enough to build a net and count its weights."""
    image = torch.zeros(1, shape.channels, shape.height, shape.width, dtype=torch.uint8)
    return Data(image, torch.zeros(1, dtype=torch.int64), shape.classes, name)


def read_identity(folder: Path) -> Identity | None:
    """What a folder's `data.json` says; None where there is no such file.

    Raises:
        InputError: it cannot be read.
    """
    path = folder / DATA
    if not path.exists():
        return None
    try:
        return parse_identity(path.read_bytes())
    except (OSError, ValueError) as error:
        expected = "a JSON object with name, sha256, train_count and test_count"
        raise InputError(f"file {path}", expected=expected, got=str(error)) from error


def parse_identity(raw: bytes) -> Identity:
    """The content of a `data.json`.

    Raises:
        ValueError: the bytes are none.
    """
    try:
        values = json.loads(raw)
    except RecursionError as error:
        raise ValueError("lists in lists without end") from error
    others, shape = [], None
    if isinstance(values, dict):
        others, shape = values.pop("foreign", []), values.pop("shape", None)
    if not isinstance(others, list) or len(others) > 100:
        raise ValueError(f"foreign {others!r}")
    data = _taken(values, {"name": str, "sha256": str, "train_count": int, "test_count": int})
    kinds = {"name": str, "label": str, "sha256": str, "images": int, "scale": float}
    ood = tuple(OodSet(*_taken(each, kinds)) for each in others)
    return Identity(DataIdentity(*data), ood, None if shape is None else _shape(shape))


def _shape(values: object) -> Shape:
    shape = Shape(*_taken(values, dict.fromkeys(Shape._fields, int)))
    values_of_an_image = shape.channels * shape.height * shape.width
    if min(shape) < 1 or shape.classes > MOST_CLASSES or values_of_an_image > MOST_VALUES:
        raise ValueError(f"shape {tuple(shape)}")
    return shape


def _taken(values: object, kinds: Mapping[str, type]) -> Iterator[Any]:
    """The values of an object that has these and no others."""
    if not isinstance(values, dict) or set(values) != set(kinds):
        raise ValueError("other entries")
    for name, kind in kinds.items():
        if type(values[name]) is not kind or (name == "sha256" and not re.fullmatch(r"[0-9a-f]{64}", values[name])):
            raise ValueError(f"{name} {values[name]!r}")
        yield values[name]
