"""Images from outside a classifier's data: what it should be unsure about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor

from advbench.data.datasets import limited, load_dataset
from advbench.errors import InputError

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


class OodSet(pydantic.BaseModel):
    """A data set whose test images are shown to classifiers of another one.

    Attributes:
        name: its registered name, without path.
        label: what tables call it: that name, and the file or folder where several have it.
        sha256: of its content.
        images: how many test images it has.
        scale: factor on their pixel values; APD section 5.2.3: 5.
    """

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str
    label: str
    sha256: str = pydantic.Field(pattern="^[0-9a-f]{64}$")
    images: int
    scale: float


def identify_ood(names: Sequence[str], root: str | None, scale: float) -> list[OodSet]:
    """What a plan needs to know of foreign data sets.

    Args:
        names: as `load_dataset` takes them.
        root: the folder of the data sets.
        scale: factor on the pixel values.

    Raises:
        InputError: one is absent or malformed, or two are the same.
    """
    found: dict[str, OodSet] = {}
    for name, label in zip(names, ood_labels(names), strict=True):
        dataset = load_dataset(name, root)
        if dataset.digest in found:
            raise InputError(f"--ood {name!r}", expected="each data set once", got="the same images twice")
        kind = name.partition(":")[0]
        found[dataset.digest] = OodSet(
            name=kind, label=label, sha256=dataset.digest, images=len(dataset.test), scale=scale
        )
    return list(found.values())


def ood_labels(names: Sequence[str]) -> list[str]:
    """What tables call foreign data sets: the registered name, and the file or folder where several have it.

    Raises:
        InputError: two would be called the same.
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
    """Test images of another data set, brought to the shape that a classifier takes.

    Resized (bilinear, with antialiasing); colour becomes luminance where one channel is wanted, grey is repeated where
    three are.

    Args:
        name: as `load_dataset` takes it.
        root: the folder of the data sets.
        count: how many at most: a fixed stratified subset.
        shape: channels, height, width.
        scale: factor on the pixel values, which may so leave [0, 1].

    Returns:
        `(count, *shape)`, float32.

    Raises:
        InputError: the data set is absent or malformed, or its channels cannot be made to fit.
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
