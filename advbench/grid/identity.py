"""Which data a run is about: what keys hold of it, and `data.json`, which says so beside the results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import pydantic
import torch

from advbench.data.base import Data
from advbench.data.datasets import Dataset, load_dataset
from advbench.data.ood import OodSet, identify_ood
from advbench.errors import InputError
from advbench.grid.spec import RunSpec

DATA = "data.json"
MOST_CLASSES, MOST_VALUES = 100_000, 2**22  # that a file may state; values are those of an image
Digest = Annotated[str, pydantic.Field(pattern=r"^[0-9a-f]{64}$")]


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


class _Part(pydantic.BaseModel):
    """Known fields alone, of the types that they state."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, defer_build=True)


class _Shape(_Part):
    channels: pydantic.PositiveInt
    height: pydantic.PositiveInt
    width: pydantic.PositiveInt
    classes: int = pydantic.Field(ge=1, le=MOST_CLASSES)

    @pydantic.model_validator(mode="after")
    def _small(self) -> Self:
        if self.channels * self.height * self.width > MOST_VALUES:
            raise ValueError(f"images of at most {MOST_VALUES:,} values")
        return self


class _Ood(_Part):
    name: str
    label: str
    sha256: Digest
    images: int
    scale: float
    signed: bool = False


class _File(_Part):
    """`data.json`."""

    name: str
    sha256: Digest
    train_count: int
    test_count: int
    shape: _Shape | None = None
    foreign: list[_Ood] = pydantic.Field(default=[], max_length=100)


def identity_text(identity: Identity) -> str:
    """The content of `data.json`, by which keys can be checked and results reported without the data."""
    data, ood, shape = identity
    values: dict[str, Any] = dict(zip(_File.model_fields, data, strict=False))
    if shape:
        values["shape"] = shape._asdict()
    if ood:
        parts = [_Ood.model_validate(dict(zip(_Ood.model_fields, each, strict=True))) for each in ood]
        values["foreign"] = [part.model_dump(exclude_defaults=True) for part in parts]
    return json.dumps(values, indent=1) + "\n"


def is_about(identity: Identity, spec: RunSpec) -> bool:
    """Whether these are the data sets that a spec names, by names and scale."""
    kinds = [name.partition(":")[0] for name in (spec.dataset, *spec.ood)]
    scales = {(each.scale, each.signed) for each in identity.ood}
    known = [identity.data.name, *(each.name for each in identity.ood)]
    return kinds == known and scales <= {(spec.ood_scale, spec.ood_signed)}


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
    ood = identify_ood(spec.ood, data_root, spec.ood_scale, spec.ood_signed)
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
        file = _File.model_validate_json(raw)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")) from error
    ood = tuple(OodSet(*each.model_dump().values()) for each in file.foreign)
    shape = Shape(**file.shape.model_dump()) if file.shape else None
    return Identity(DataIdentity(file.name, file.sha256, file.train_count, file.test_count), ood, shape)
