"""Identity of the data of a run, in keys and in `data.json` next to the results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

import pydantic
import torch

from advbench.data.base import Data
from advbench.data.datasets import Dataset, load_dataset
from advbench.data.ood import OodSet, identify_ood
from advbench.errors import InputError
from advbench.grid.spec import RunSpec

DATA = "data.json"
MOST_CLASSES, MOST_VALUES = 100_000, 2**22  # limits in a file; values per image
Digest = Annotated[str, pydantic.Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(pydantic.BaseModel):
    """Base model: known fields only, with strict types."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)


class Shape(_Part):
    """Shape of the images of a data set, and number of classes, for building nets."""

    channels: pydantic.PositiveInt
    height: pydantic.PositiveInt
    width: pydantic.PositiveInt
    classes: int = pydantic.Field(ge=1, le=MOST_CLASSES)

    @pydantic.model_validator(mode="after")
    def _small(self) -> Self:
        if self.channels * self.height * self.width > MOST_VALUES:
            raise ValueError(f"images of at most {MOST_VALUES:,} values")
        return self


class Identity(_Part):
    """Identity of the data of a run, the content of `data.json`, for checks of keys and reports without the data.

    Attributes:
        name: registered name of the data set, without path.
        sha256: SHA-256 of the content.
        train_count: number of training images.
        test_count: number of test images.
        shape: shape of the images, and number of classes.
        foreign: out-of-distribution data sets.
    """

    name: str
    sha256: Digest
    train_count: int
    test_count: int
    shape: Shape
    foreign: tuple[OodSet, ...] = pydantic.Field(default=(), max_length=100)

    def to_bytes(self) -> bytes:
        """Return the content of `data.json`."""
        return f"{self.model_dump_json(indent=1, exclude_defaults=True)}\n".encode()

    def blank(self) -> Data:
        """Return a single black image in place of training data, for building a net and counting its weights."""
        shape = self.shape
        image = torch.zeros(1, shape.channels, shape.height, shape.width, dtype=torch.uint8)
        return Data(image, torch.zeros(1, dtype=torch.int64), shape.classes, self.name)


def is_about(identity: Identity, spec: RunSpec) -> bool:
    """True if names and scale of the data sets match a spec."""
    kinds = [name.partition(":")[0] for name in (spec.dataset, *spec.ood)]
    scales = {(each.scale, each.signed) for each in identity.foreign}
    known = [identity.name, *(each.name for each in identity.foreign)]
    return kinds == known and scales <= {(spec.ood_scale, spec.ood_signed)}


def identify(dataset: Dataset, ood: Sequence[OodSet] = ()) -> Identity:
    """Identity of a data set and of out-of-distribution data sets, for a plan."""
    channels, height, width = dataset.train.shape
    return Identity(
        name=dataset.name.partition(":")[0],
        sha256=dataset.digest,
        train_count=len(dataset.train),
        test_count=len(dataset.test),
        shape=Shape(channels=channels, height=height, width=width, classes=dataset.train.classes),
        foreign=tuple(ood),
    )


def identify_data(spec: RunSpec, data_root: str | None) -> Identity:
    """Identity of the data of a spec, which are downloaded if necessary.

    Raises:
        InputError: the data are missing or malformed.
    """
    ood = identify_ood(spec.ood, data_root, spec.ood_scale, spec.ood_signed)
    return identify(load_dataset(spec.dataset, data_root), ood)


def read_identity(folder: Path) -> Identity | None:
    """Read a folder's `data.json`; None if there is none.

    Raises:
        InputError: the file cannot be read.
    """
    path = folder / DATA
    if not path.exists():
        return None
    try:
        return parse_identity(path.read_bytes())
    except (OSError, ValueError) as error:
        expected = "a JSON object with name, sha256, train_count, test_count and shape"
        raise InputError(f"file {path}", expected=expected, got=str(error)) from error


def parse_identity(raw: bytes) -> Identity:
    """Parse the content of a `data.json`.

    Raises:
        ValueError: the content is invalid.
    """
    try:
        return Identity.model_validate_json(raw)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")) from error
