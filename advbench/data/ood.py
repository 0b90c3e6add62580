"""Out-of-distribution images, on which a classifier should be uncertain."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor

from advbench.data.base import Data
from advbench.data.datasets import limited, load_dataset
from advbench.errors import InputError
from advbench.keys import derive

NOISE_IMAGES = 10_000
NOISE = {"gaussian": "gaussian noise 1", "uniform": "uniform noise 1"}
MADE = {**NOISE, "blurred": "blurred test images 1"}  # sets that are made, not read: what their digests stand for
BLUR = 1 / 16  # standard deviation of the blur, as a share of the larger side
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


class OodSet(pydantic.BaseModel):
    """A data set whose test images are out-of-distribution for classifiers of another one.

    Attributes:
        name: registered name, without path.
        label: label in tables: the name, followed by the file or folder if several data sets share it.
        sha256: SHA-256 of the content.
        images: number of test images.
        scale: factor on the pixel values; APD section 5.2.3: 5.
        signed: True if the factor is on pixel values in [-1, 1], as after APD's normalisation, not in [0, 1].
    """

    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str
    label: str
    sha256: str = pydantic.Field(pattern="^[0-9a-f]{64}$")
    images: int
    scale: float
    signed: bool = False


def identify_ood(names: Sequence[str], root: str | None, scale: float, signed: bool = False) -> list[OodSet]:
    """Load out-of-distribution data sets and describe them for a plan.

    Args:
        names: names as in `ood_images`.
        root: folder of the data sets.
        scale: factor on the pixel values.
        signed: whether on those in [-1, 1].

    Raises:
        InputError: a data set is missing or malformed, or two are equal.
    """
    found: dict[str, OodSet] = {}
    for name, label in zip(names, ood_labels(names), strict=True):
        digest = ood_digest(name, root)
        if digest in found:
            raise InputError(f"--ood {name!r}", expected="each data set once", got="the same images twice")
        count = NOISE_IMAGES if name in MADE else len(load_dataset(name, root).test)
        kind = name.partition(":")[0]
        found[digest] = OodSet(name=kind, label=label, sha256=digest, images=count, scale=scale, signed=signed)
    return list(found.values())


def ood_digest(name: str, root: str | None) -> str:
    """SHA-256 of a data set's content; of one that is made, of how."""
    return hashlib.sha256(MADE[name].encode()).hexdigest() if name in MADE else load_dataset(name, root).digest


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


def ood_images(
    name: str,
    root: str | None,
    count: int,
    shape: tuple[int, int, int],
    scale: float,
    signed: bool = False,
    own: Data | None = None,
) -> Tensor:
    """Test images of another data set, converted to the input shape of a classifier; or noise, or blurred images.

    Images are resized (bilinear, with antialiasing). Colour becomes luminance if one channel is expected; grey is
    repeated if three are. Then values are multiplied: x -> scale x, or where `signed` 2x - 1 -> scale (2x - 1), as
    APD (section 5.2.3, and its released code) does with images normalised to [-1, 1].

    Noise is that of Hendrycks and Gimpel 2017: each value is drawn from N(0, 1) ("gaussian") or U(0, 1) ("uniform").
    Where `signed` these are values of the range [-1, 1], as in APD's released code. "blurred" are the classifier's own
    test images under a Gaussian blur whose deviation is 1/16 of their larger side (adversarial sampling Figure 6, which
    does not state the blur).

    Args:
        name: name as in `load_dataset`, or "gaussian", "uniform" or "blurred".
        root: folder of the data sets.
        count: maximum number of images; a fixed stratified subset.
        shape: channels, height, width.
        scale: factor on the pixel values, which may then leave [0, 1].
        signed: True if the factor is on values in [-1, 1].
        own: the classifier's own test images, for "blurred".

    Returns:
        `(count, *shape)`, float32.

    Raises:
        InputError: the data set is missing or malformed, or its channels cannot be converted.
    """
    if name in NOISE:
        values = _noise(name, min(count, NOISE_IMAGES), shape) * scale
        return (1 + values) / 2 if signed else values
    if name == "blurred":
        assert own is not None, "a run has test images"
        images = _blurred(limited(own, min(count, NOISE_IMAGES)).batch(slice(None))[0])
    else:
        images, _ = limited(load_dataset(name, root).test, count).batch(slice(None))
    channels, height, width = shape
    if images.shape[1] == 3 and channels == 1:
        images = (images * torch.tensor(LUMINANCE).view(1, 3, 1, 1)).sum(1, keepdim=True)
    elif images.shape[1] == 1 and channels == 3:
        images = images.expand(-1, 3, -1, -1)
    elif images.shape[1] != channels:
        raise InputError(f"images of {name!r}", expected=f"1, 3 or {channels} channels", got=images.shape[1])
    if images.shape[2:] != (height, width):
        images = F.interpolate(images, (height, width), mode="bilinear", antialias=True).clamp(0, 1)
    return (1 + scale * (2 * images - 1)) / 2 if signed else images * scale


def _blurred(images: Tensor) -> Tensor:
    """Each channel under a Gaussian blur; the images' edges go on as they are."""
    deviation = BLUR * max(images.shape[2:])
    reach = math.ceil(3 * deviation)
    weights = torch.exp(-(torch.arange(-reach, reach + 1) / deviation).square() / 2)
    weights = (weights / weights.sum()).view(1, 1, 1, -1)
    count, channels, height, width = images.shape
    planes = F.pad(images.reshape(-1, 1, height, width), (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(planes, weights), weights.transpose(2, 3)).view(count, channels, height, width)


def _noise(name: str, count: int, shape: tuple[int, int, int]) -> Tensor:
    """Images of noise, each by its own seed, so that more of them begin with fewer of them."""
    images = torch.empty((count, *shape))
    generator = torch.Generator()
    for index, image in enumerate(images):
        generator.manual_seed(derive(0, NOISE[name], index))
        image.normal_(generator=generator) if name == "gaussian" else image.uniform_(generator=generator)
    return images
