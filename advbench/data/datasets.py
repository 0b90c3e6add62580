"""Registered data sets with fixed train, validation and test splits, and a content digest for keys of results."""

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
        name: registered name.
        train: training images.
        validation: images held out of the training part, for model selection.
        test: images for attacks and evaluations.
        digest: SHA-256 of the images and labels of all splits, which identifies the data.
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
    """Load a data set; download it into `root` if torchvision can.

    Args:
        name: registered name; `imagefolder:PATH` and `npz:PATH` load the user's own data.
        root: folder of the data sets, in torchvision's layout.

    Raises:
        InputError: the name is unknown, or the data are missing or malformed.
    """
    kind, _, path = name.partition(":")
    load = registry().load("dataset", kind)
    dataset: Dataset = load(data_folder(root), path)
    return dataset


def data_folder(root: str | None) -> Path:
    """Folder of the data sets: `root`, or a default in the user's home or, without a home, in the current folder."""
    home = os.path.expanduser("~")
    if root:
        return Path(os.path.expanduser(root))
    # In containers without HOME and without a passwd entry, `~` is not expanded.
    return Path(home, ".cache/advbench/data") if home != "~" else Path(".advbench/data").absolute()


def make_dataset(
    name: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: int | None = None
) -> Dataset:
    """Build a data set from its official training and test parts; a tenth of the former becomes the validation part.

    Args:
        name: name of the data set.
        train: images `(count, channels, height, width)`, uint8 or float32 in [0, 1], and labels `(count,)`.
        test: test images and labels, in the same format.
        classes: number of classes; by default the largest label plus one.

    Raises:
        InputError: images outside [0, 1], labels out of range, inconsistent shapes, or too few images.
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
            expected=f"the shape of the training images, {tuple(train[0].shape[1:])}",
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
    """Ascending indices of a fixed stratified subset: class proportions are those of the whole, within one image.

    The subset of size n is contained in that of size n + 1, so a larger limit only adds images. Classes take turns as
    in Tijdeman 1980, "The chairman assignment problem"; the images of a class follow a fixed shuffle.

    Args:
        labels: labels `(total,)`, int64.
        count: size of the subset, from 1 to `total`.
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
    """The fixed stratified subset of `limit` images; all images if `limit` is None or exceeds their number."""
    if limit is None or limit >= len(data):
        return data
    index = stratified(data.labels, limit)
    return Data(data.images[index], data.labels[index], data.classes, data.name)
