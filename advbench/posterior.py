"""Distributions over a module's weights: a point and a mean-field Gaussian."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from advbench.errors import InputError

Weights = Mapping[str, Tensor]


class Posterior(nn.Module, ABC):
    """A distribution over the parameters of a module, by name.

    Attributes:
        kind: the name under which a stored classifier finds its class again.
        stochastic: False where every sample is the same.
    """

    kind: ClassVar[str]
    stochastic: ClassVar[bool] = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        if not any(True for _ in module.parameters()):
            raise InputError("a module without parameters", remedy="a posterior needs weights to be over")

    @abstractmethod
    def sample(self, generator: torch.Generator) -> Weights:
        """One draw: a tensor for each parameter name, differentiable in the posterior's own parameters."""

    @abstractmethod
    def trainable(self) -> list[nn.Parameter]:
        """What an optimiser moves."""

    @abstractmethod
    def export(self) -> dict[str, Tensor]:
        """The state as named tensors, one for each parameter of the module and each quantity."""

    @abstractmethod
    def restore(self, tensors: Weights) -> None:
        """Take over what `export` gave."""


class PointPosterior(Posterior):
    """All mass on one value of the weights: the parameters of the module itself, or those given.

    Args:
        module: the module; its parameters are shared, not copied.
        weights: a tensor for each parameter name, where they differ from the module's own.
    """

    kind = "point"
    stochastic = False

    def __init__(self, module: nn.Module, weights: Weights | None = None) -> None:
        nn.Module.__init__(self)
        self._own = dict(module.named_parameters())
        self._weights = None if weights is None else dict(weights)

    @property
    def is_modules_own(self) -> bool:
        """Whether the module can be called as it is."""
        return self._weights is None

    def sample(self, generator: torch.Generator) -> Weights:
        """The weights, the same at every call."""
        return self._own if self._weights is None else self._weights

    def trainable(self) -> list[nn.Parameter]:
        """The module's parameters."""
        return list(self._own.values())

    def export(self) -> dict[str, Tensor]:
        """The weights by parameter name."""
        weights = self._own if self._weights is None else self._weights
        return {f"value.{name}": tensor.detach() for name, tensor in weights.items()}

    def restore(self, tensors: Weights) -> None:
        """Write the weights into the module."""
        with torch.no_grad():
            for name, parameter in self._own.items():
                parameter.copy_(tensors[f"value.{name}"])


class GaussianPosterior(Posterior):
    """Mean-field Gaussian over every parameter: q(w) = prod N(mean, exp(log_std)^2).

    Adv-BNN eq. 5. Mean and log standard deviation of all weights are one flat vector each, so that a draw
    and a KL are a handful of kernels whatever the depth of the net; a draw is cut into views.

    Args:
        module: its parameters are the initial mean; they take no further part.
        std: the initial standard deviation of each weight, > 0.
    """

    kind = "gaussian"

    def __init__(self, module: nn.Module, std: float = 0.05) -> None:
        super().__init__(module)
        if not (math.isfinite(std) and std > 0):
            raise InputError("initial standard deviation", expected="a finite number > 0", got=std)
        named = dict(module.named_parameters())
        self._shapes = {name: parameter.shape for name, parameter in named.items()}
        flat = torch.cat([parameter.detach().reshape(-1) for parameter in named.values()])
        self.mean = nn.Parameter(flat.clone())
        self.log_std = nn.Parameter(torch.full_like(flat, math.log(std)))

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        parts = torch.split(flat, [shape.numel() for shape in self._shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def sample(self, generator: torch.Generator) -> Weights:
        """W = mean + exp(log_std) * noise with noise ~ N(0, 1) (Adv-BNN section 3, Bayes by backprop)."""
        noise = torch.empty_like(self.mean).normal_(generator=generator)
        return self._views(self.mean + self.log_std.exp() * noise)

    def trainable(self) -> list[nn.Parameter]:
        """Mean and log standard deviation."""
        return [self.mean, self.log_std]

    def kl(self, prior_std: float, names: Iterable[str] | None = None) -> Tensor:
        """KL(q || N(0, prior_std^2)), in nats, summed over the weights (Adv-BNN eq. 6).

        Args:
            prior_std: standard deviation s0 of the prior.
            names: the parameters to count; all by default.

        Returns:
            Scalar, sum of log(s0 / sigma) + (sigma^2 + mu^2) / (2 s0^2) - 1/2.
        """
        mean, log_std = self._selected(names)
        scaled = (torch.exp(2 * log_std) + mean.square()) / (2 * prior_std**2)
        return (math.log(prior_std) - log_std + scaled - 0.5).sum()

    def _selected(self, names: Iterable[str] | None) -> tuple[Tensor, Tensor]:
        if names is None:
            return self.mean, self.log_std
        means, log_stds = self._views(self.mean), self._views(self.log_std)
        chosen = list(names)
        return (
            torch.cat([means[name].reshape(-1) for name in chosen]),
            torch.cat([log_stds[name].reshape(-1) for name in chosen]),
        )

    def export(self) -> dict[str, Tensor]:
        """Mean and log standard deviation by parameter name."""
        means = self._views(self.mean.detach())
        log_stds = self._views(self.log_std.detach())
        return {f"mean.{n}": t for n, t in means.items()} | {f"log_std.{n}": t for n, t in log_stds.items()}

    def restore(self, tensors: Weights) -> None:
        """Take over mean and log standard deviation."""
        with torch.no_grad():
            for quantity in ("mean", "log_std"):
                parts = [tensors[f"{quantity}.{name}"].reshape(-1) for name in self._shapes]
                getattr(self, quantity).copy_(torch.cat(parts))


def posterior_kinds() -> dict[str, type[Posterior]]:
    """The posteriors that a stored classifier may name."""
    return {cls.kind: cls for cls in (PointPosterior, GaussianPosterior)}
