"""Data sets by name, with fixed train, validation and test splits and an identity that goes into keys."""

from __future__ import annotations

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from advbench.data.base import Data, check_images, check_labels
from advbench.errors import InputError
from advbench.registry import registry

VALIDATION_FRACTION = 0.1
_SPLIT_SEED = 20_190_501


@dataclass(frozen=True)
class Dataset:
    """A data set with its fixed splits.

    Attributes:
        name: the registered name.
        train: what trainings see.
        validation: held out of the training images, for choices.
        test: what attacks and evaluations see.
        digest: SHA-256 of images and labels of all splits: the data's identity.
    """

    name: str
    train: Data
    validation: Data
    test: Data
    digest: str

    def __repr__(self) -> str:
        parts = ", ".join(f"{len(part)} {name}" for name, part in self.parts.items())
        return f"Dataset({self.name!r}, {parts}, {self.train.classes} classes)"

    @property
    def parts(self) -> dict[str, Data]:
        """The splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


@functools.lru_cache(maxsize=4)
def load_dataset(name: str, root: str | None = None) -> Dataset:
    """Load a data set, downloading it into `root` where torchvision can.

    Args:
        name: a registered data set; `imagefolder:PATH` and `npz:PATH` read the user's own.
        root: the folder that holds data sets, as torchvision lays them out.

    Raises:
        InputError: unknown name, or data that is absent or malformed; says what to put where.
    """
    kind, _, path = name.partition(":")
    load = registry().load("dataset", kind)
    dataset: Dataset = load(data_folder(root), path)
    return dataset


def data_folder(root: str | None) -> Path:
    """Where data sets lie: the folder named, else one in the user's home, or of a user without one here."""
    home = os.path.expanduser("~")
    if root:
        return Path(os.path.expanduser(root))
    # Without HOME, and for a user that no list has, as in many containers, it stays as it is.
    return Path(home, ".cache/advbench/data") if home != "~" else Path(".advbench/data").absolute()


def make_dataset(
    name: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int | None = None
) -> Dataset:
    """A data set from its official training and test parts; a tenth of the former becomes validation.

    Args:
        name: its name.
        train: images `(count, channels, height, width)`, uint8 or float32 in [0, 1], and labels `(count,)`.
        test: likewise.
        classes: how many classes; by default the largest label plus one.

    Raises:
        InputError: images outside [0, 1], labels outside the classes, shapes that disagree, or too few images.
    """
    if len(train[0]) < 2 or len(test[0]) < 1:
        raise InputError(
            f"data set {name!r}",
            expected="at least 2 training images and 1 test image",
            got=f"{len(train[0])} and {len(test[0])}",
        )
    if train[0].shape[1:] != test[0].shape[1:]:
        raise InputError(
            f"test images of {name}",
            expected=f"the training images' shape {tuple(train[0].shape[1:])}",
            got=tuple(test[0].shape[1:]),
        )
    if classes is None:
        classes = max(int(labels.max()) if len(labels) else 0 for _, labels in (train, test)) + 1
    if classes > 100_000:
        raise InputError(f"labels of {name}", expected="classes numbered from 0, at most 100,000", got=classes - 1)
    digest = hashlib.sha256(f"{name.partition(':')[0]}/{classes}".encode())
    for part, (images, labels) in (("training", train), ("test", test)):
        check_images(images, f"{part} images of {name}")
        check_labels(labels, len(images), classes, f"{part} labels of {name}")
        digest.update(f"{images.dtype}{tuple(images.shape)}".encode())
        digest.update(images.contiguous().numpy().tobytes())
        digest.update(labels.numpy().tobytes())
    held_out = stratified(train[1], max(1, round(VALIDATION_FRACTION * len(train[1]))))
    kept = torch.ones(len(train[1]), dtype=torch.bool)
    kept[held_out] = False
    return Dataset(
        name=name,
        train=Data(train[0][kept], train[1][kept], classes, name),
        validation=Data(train[0][held_out], train[1][held_out], classes, name),
        test=Data(*test, classes, name),
        digest=digest.hexdigest(),
    )


def stratified(labels: Tensor, count: int) -> Tensor:
    """The indices, ascending, of one fixed subset that holds each class in proportion, within one image.

    A subset of n is contained in that of n + 1, so a larger limit only adds images. Whose turn it is follows
    Tijdeman 1980, "The chairman assignment problem"; which of a class's images comes next is a fixed shuffle.

    Args:
        labels: `(total,)`, int64.
        count: how many; at least 1, at most all.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(_SPLIT_SEED)).numpy()
    _, member, sizes = np.unique(labels.numpy()[order], return_inverse=True, return_counts=True)
    total, least = len(labels), max(1, 2 * len(sizes) - 2)
    taken = np.zeros_like(sizes)
    for step in range(1, count + 1):
        due = least * (step * sizes - taken * total)  # in units of 1 / (least * total) images
        deadline = np.where(due >= total, ((least - 1) * total - due) / sizes, np.inf)
        taken[deadline.argmin()] += 1
    chosen = [order[member == label][:number] for label, number in enumerate(taken)]
    return torch.from_numpy(np.sort(np.concatenate(chosen)))


def limited(data: Data, limit: int | None) -> Data:
    """The fixed stratified subset of `limit` images; all of them without a limit or beyond their number."""
    if limit is None or limit >= len(data):
        return data
    index = stratified(data.labels, limit)
    return Data(data.images[index], data.labels[index], data.classes, data.name)
