"""Noise inside a module: dropout and Gaussian noise that stay on in evaluation mode."""

from __future__ import annotations

import functools
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear  # the projection inside nn.MultiheadAttention

from advbench.errors import InputError, PluginError
from advbench.registry import files

_DROPOUT: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Dropout: F.dropout,
    nn.Dropout1d: F.dropout1d,
    nn.Dropout2d: F.dropout2d,
    nn.Dropout3d: F.dropout3d,
    nn.AlphaDropout: F.alpha_dropout,
    nn.FeatureAlphaDropout: F.feature_alpha_dropout,
}


class Noise(ABC):
    """Randomness inside the layers of a module, drawn independently for each image.

    Attributes:
        kind: registered name of the class, stored with a classifier.
        symmetric: True if the negative of the noise has the same distribution, and `mirrored` applies it.
    """

    kind: ClassVar[str]
    symmetric: ClassVar[bool] = False

    @property
    def acts(self) -> bool:
        """True if it can change the logits; False at level 0."""
        return True

    @property
    def faint(self) -> bool:
        """True if it is so weak that many draws may be equal."""
        return False

    @contextmanager
    def mirrored(self, negative: bool) -> Iterator[None]:
        """Apply the negative of the noise in a block, if `symmetric`."""
        yield

    @abstractmethod
    def values(self) -> dict[str, Any]:
        """Keyword arguments that recreate the noise, as JSON values."""

    @abstractmethod
    def attach(self, module: nn.Module) -> None:
        """Hook the noise to the layers of a module; it uses the global random state, which a classifier seeds."""

    def install(self, module: nn.Module) -> None:
        """Install the noise in a module, permanently.

        Raises:
            InputError: the module already contains noise, or has no suitable layer.
        """
        if getattr(module, "_holds_noise", False):
            raise InputError("the module already contains noise", remedy="pass a module without noise")
        self.attach(module)
        module._holds_noise = True  # type: ignore[assignment]


class DropoutNoise(Noise):
    """Dropout at prediction (Gal and Ghahramani 2016).

    The module's own dropout layers stay on, at `rate`. In a module without any, dropout is added before each linear
    layer other than its first layer of weights.

    Args:
        rate: probability of dropping a unit, in [0, 1).
    """

    kind = "dropout"

    def __init__(self, rate: float = 0.5) -> None:
        if not 0 <= rate < 1:
            raise InputError("dropout rate", expected="a number in [0, 1)", got=rate)
        self.rate = rate

    @property
    def acts(self) -> bool:
        """True at a rate above 0."""
        return self.rate > 0

    @property
    def faint(self) -> bool:
        """True at a rate below 0.01."""
        return self.rate < 0.01

    def values(self) -> dict[str, Any]:
        """The rate."""
        return {"rate": self.rate}

    def attach(self, module: nn.Module) -> None:
        """Hook dropout to the layers."""
        own = [layer for layer in module.modules() if isinstance(layer, _DropoutNd)]
        for layer in own:
            layer.p = 0.0  # the hook drops units instead, in any mode
            drop = next((function for kind, function in _DROPOUT.items() if isinstance(layer, kind)), F.dropout)
            layer.register_forward_hook(functools.partial(_drop_output, drop, self.rate))
        if own:
            return
        weighted = _layers(module, (nn.Linear, _ConvNd))
        places = [layer for layer in weighted[1:] if isinstance(layer, nn.Linear)]
        if not places:
            raise InputError(
                "the module has no layer for dropout",
                expected="a dropout layer, or a linear layer after another layer of weights",
            )
        for place in places:
            place.register_forward_pre_hook(functools.partial(_drop_input, self.rate))


class GaussianNoise(Noise):
    """Gaussian noise added to the images and to the input of each further convolution (RSE, Liu et al. 2018).

    In a module without convolutions, it is added before the linear layers. The first noise is added to the images
    themselves, before the module normalises them, as in the authors' code.

    Args:
        first: standard deviation of the noise on the images, in pixels in [0, 1].
        inner: standard deviation before each layer but the first, in units of that layer's input.
    """

    kind = "gaussian"
    symmetric = True

    def __init__(self, first: float = 0.2, inner: float = 0.1) -> None:
        self.first = first
        self.inner = inner
        self._negative = False

    @property
    def acts(self) -> bool:
        """True at any standard deviation above 0."""
        return self.first > 0 or self.inner > 0

    @property
    def faint(self) -> bool:
        """True at standard deviations that vanish in float32 rounding."""
        return max(self.first, self.inner) < 1e-5

    def values(self) -> dict[str, Any]:
        """The two standard deviations."""
        return {"first": self.first, "inner": self.inner}

    @contextmanager
    def mirrored(self, negative: bool) -> Iterator[None]:
        """Subtract the noise in a block instead of adding it."""
        self._negative = negative
        try:
            yield
        finally:
            self._negative = False

    def attach(self, module: nn.Module) -> None:
        """Hook noise to the layers."""
        places = _layers(module, (_ConvNd,)) or _layers(module, (nn.Linear,))
        if not places:
            raise InputError("the module has no layer for noise", expected="a convolution or a linear layer")
        module.register_forward_pre_hook(functools.partial(self._add, self.first))
        for layer in places[1:]:
            layer.register_forward_pre_hook(functools.partial(self._add, self.inner))

    def _add(self, std: float, layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0]
        noise = torch.empty_like(x).normal_(0, std)
        return (x - noise if self._negative else x + noise, *args[1:])


class InputNoise(Noise):
    """Random transformation of the images before they enter the module. Subclasses implement `change`.

    Arguments of the constructor must be JSON values and are stored as attributes of the same names.
    """

    kind = ""  # a class in a file is identified by the file

    @abstractmethod
    def change(self, x: Tensor) -> Tensor:
        """Transform images `(batch, channels, height, width)` differentiably; uses the global random state."""

    def values(self) -> dict[str, Any]:
        """The attributes."""
        return dict(vars(self))

    def attach(self, module: nn.Module) -> None:
        """Apply the transformation before the module."""
        module.register_forward_pre_hook(self._changed)

    def _changed(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = args[0]
        changed = self.change(x)
        wanted, given = (_described(each) for each in (x, changed))
        if wanted != given:
            raise PluginError(
                f"{type(self).__name__}.change",
                expected=f"images of the dtype, batch size and device that it was given ({wanted})",
                got=given,
                remedy="one call makes one draw of each image; the number of draws is --draws",
            )
        return (changed, *args[1:])


def checked_noise(owner: object, noise: object) -> Noise:
    """The result of a plugin's method `noise`.

    Raises:
        PluginError: it is not a `Noise`.
    """
    if isinstance(noise, Noise):
        return noise
    cls = type(owner)
    beside = vars(sys.modules[cls.__module__]).values()
    kinds = [each for each in beside if isinstance(each, type) and issubclass(each, Noise)]
    own = [each.__name__ for each in kinds if each.__module__ == cls.__module__]
    raise PluginError(
        files.place_of_method(cls, "noise"),
        expected="a Noise, such as an InputNoise or GaussianNoise",
        got="None" if noise is None else f"an object of type {type(noise).__name__}",
        remedy=f"write: return {own[0] if own else 'GaussianNoise'}(...)",
    )


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"an object of type {type(value).__name__}"
    return f"{value.dtype}, {len(value) if value.ndim else 'no'} images of {value.ndim - 1} dimensions, {value.device}"


def _layers(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[nn.Module]:
    """Layers of the given kinds in the order of `module.modules()`, except those that are never called."""
    layers = [layer for layer in module.modules() if isinstance(layer, kinds)]
    return [layer for layer in layers if not isinstance(layer, NonDynamicallyQuantizableLinear)]


def _drop_output(drop: Callable[..., Tensor], rate: float, layer: nn.Module, args: object, output: Tensor) -> Tensor:
    return drop(output, rate, True)


def _drop_input(rate: float, layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (F.dropout(args[0], rate, True), *args[1:])
