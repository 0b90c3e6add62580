"""Out-of-distribution images, on which a classifier should be uncertain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from advbench.data.datasets import limited, load_dataset
from advbench.errors import InputError

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


class OodSet(NamedTuple):
    """A data set whose test images are out-of-distribution for classifiers of another one.

    Attributes:
        name: registered name, without path.
        label: label in tables: the name, followed by the file or folder if several data sets share it.
        digest: SHA-256 of the content.
        images: number of test images.
        scale: factor on the pixel values; APD section 5.2.3: 5.
    """

    name: str
    label: str
    digest: str
    images: int
    scale: float


def identify_ood(names: Sequence[str], root: str | None, scale: float) -> list[OodSet]:
    """Load out-of-distribution data sets and describe them for a plan.

    Args:
        names: names as in `load_dataset`.
        root: folder of the data sets.
        scale: factor on the pixel values.

    Raises:
        InputError: a data set is missing or malformed, or two are equal.
    """
    found: dict[str, OodSet] = {}
    for name, label in zip(names, ood_labels(names), strict=True):
        dataset = load_dataset(name, root)
        if dataset.digest in found:
            raise InputError(f"--ood {name!r}", expected="each data set once", got="the same images twice")
        kind = name.partition(":")[0]
        found[dataset.digest] = OodSet(kind, label, dataset.digest, len(dataset.test), scale)
    return list(found.values())


def ood_labels(names: Sequence[str]) -> list[str]:
    """Labels of out-of-distribution data sets: the registered name, and the file or folder if several share it.

    Raises:
        InputError: two labels would be equal.
    """
    kinds = Counter(name.partition(":")[0] for name in names)
    labels = []
    for name in names:
        kind, _, path = name.partition(":")
        labels.append(kind if kinds[kind] == 1 else f"{kind}:{PurePath(path).name}")
    if len(set(labels)) < len(labels):
        raise InputError("--ood", expected="files or folders of different names", got=", ".join(names))
    return labels


def ood_images(name: str, root: str | None, count: int, shape: tuple[int, int, int], scale: float) -> Tensor:
    """Test images of another data set, converted to the input shape of a classifier.

    Images are resized (bilinear, with antialiasing). Colour becomes luminance if one channel is expected; grey is
    repeated if three are.

    Args:
        name: name as in `load_dataset`.
        root: folder of the data sets.
        count: maximum number of images; a fixed stratified subset.
        shape: channels, height, width.
        scale: factor on the pixel values, which may then exceed 1.

    Returns:
        `(count, *shape)`, float32.

    Raises:
        InputError: the data set is missing or malformed, or its channels cannot be converted.
    """
    test = limited(load_dataset(name, root).test, count)
    images, _ = test.batch(slice(None))
    channels, height, width = shape
    if images.shape[1] == 3 and channels == 1:
        images = (images * torch.tensor(LUMINANCE).view(1, 3, 1, 1)).sum(1, keepdim=True)
    elif images.shape[1] == 1 and channels == 3:
        images = images.expand(-1, 3, -1, -1)
    elif images.shape[1] != channels:
        raise InputError(f"images of {name!r}", expected=f"1, 3 or {channels} channels", got=images.shape[1])
    if images.shape[2:] != (height, width):
        images = F.interpolate(images, (height, width), mode="bilinear", antialias=True).clamp(0, 1)
    return images * scale
