"""One-line description of this network."""

from __future__ import annotations

from typing import Annotated

from torch import nn

from advbench.training import Field


# Arguments after `classes` are hyperparameters, set by --set arch.NAME=VALUE. Images come normalised; write
# `my_architecture.normalizes = True` below the function if it normalises images in [0, 1] itself.
def my_architecture(
    channels: int,
    height: int,
    width: int,
    classes: int,
    *,
    filters: Annotated[int, Field(ge=1, description="number of filters of the convolution")] = 16,
) -> nn.Module:
    """One convolution and one linear layer.

    Describe your network and its source; `advbench show` prints this text.
    """
    return nn.Sequential(
        nn.Conv2d(channels, filters, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(filters * height * width, classes),
    )
