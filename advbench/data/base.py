"""Labelled images, and validation of images and labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from advbench.errors import InputError


@dataclass(frozen=True)
class Data:
    """Labelled images.

    Attributes:
        images: images `(count, channels, height, width)`, uint8 in 0..255 or float32 in [0, 1].
        labels: labels `(count,)`, int64 in 0..classes-1.
        classes: number of classes.
        name: name of the data set, which selects the defaults of training methods.
    """

    images: Tensor
    labels: Tensor
    classes: int
    name: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        size = "x".join(map(str, self.images.shape[1:]))
        kind = f"{self.images.dtype}".removeprefix("torch.")
        return f"Data({self.name!r}, {len(self)} images {size}, {kind}, {self.classes} classes, {self.images.device})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def batch(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Images, float32 in [0, 1], and labels at `index`."""
        images = self.images[index]
        if not images.is_floating_point():
            # A GPU divides by a scalar by multiplying with its reciprocal, which rounds half of the 256 values
            # differently from the CPU; division by a tensor is exact.
            on_cpu = images.device.type == "cpu"
            images = images.float() / (255.0 if on_cpu else torch.full((), 255.0, device=images.device))
        return images, self.labels[index]

    def to(self, device: str) -> Data:
        """The same data on another device."""
        return Data(self.images.to(device), self.labels.to(device), self.classes, self.name)


def check_images(images: Tensor, what: str) -> None:
    """Require images `(count, ...)`, uint8 or floating point in [0, 1].

    Raises:
        InputError: the tensor is anything else.
    """
    if not isinstance(images, Tensor) or images.ndim < 2:
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise InputError(what, expected="a tensor (count, channels, height, width)", got=got)
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise InputError(what, expected="floating point in [0, 1]", got=images.dtype)
    if images.numel():
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):  # also false for NaN
            excess = max(-low, high - 1)
            # Clamping corrects rounding errors; images in other units have to be rescaled.
            remedy = "clamp them to [0, 1]" if excess < 1e-3 else "divide by 255, and normalise inside the model"
            found = f"[{low:g}, {high:g}]" + (f", exceeded by {excess:.3g}" if excess < 1e-3 else "")
            raise InputError(what, expected="values in [0, 1]", got=found, remedy=remedy)


def check_labels(labels: Tensor, count: int, classes: int | None, what: str) -> None:
    """Require `count` integer labels in 0..classes-1.

    Raises:
        InputError: the tensor is anything else.
    """
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != (count,):
        got = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise InputError(what, expected=f"int64 of shape ({count},)", got=got)
    if count and classes is not None and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        got = f"{int(labels.min())}..{int(labels.max())}"
        raise InputError(what, expected=f"classes 0..{classes - 1}", got=got)


def check_floating(images: Tensor, what: str) -> None:
    """Require float32 or float64 images in [0, 1].

    Raises:
        InputError: the tensor is anything else.
    """
    check_images(images, what)
    if images.dtype not in (torch.float32, torch.float64):
        raise InputError(what, expected="float32 or float64 in [0, 1]", got=images.dtype)
