"""Distributions over a module's weights: a point, a mean-field Gaussian, a set of samples, a generator."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from advbench.errors import InputError, unknown_name

Weights = Mapping[str, Tensor]


class FlatLayout:
    """Positions of a module's parameters in one flat vector of all its weights.

    One vector takes a handful of kernels to draw, update or regularise, whatever the depth of the net; a module is
    called with views of it.

    Attributes:
        size: total number of weights.
    """

    def __init__(self, module: nn.Module) -> None:
        self._shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
        self._sizes = [shape.numel() for shape in self._shapes.values()]
        self.size = sum(self._sizes)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """`flat` `(..., size)` cut into a view `(..., *shape)` for each parameter name."""
        parts = torch.split(flat, self._sizes, dim=-1)
        named = zip(self._shapes.items(), parts, strict=True)
        return {name: part.view((*flat.shape[:-1], *shape)) for (name, shape), part in named}

    def flatten(self, weights: Weights, prefix: str = "") -> Tensor:
        """The inverse of `views` on tensors named `prefix` + parameter name, `(..., size)`."""
        parts = []
        for name, shape in self._shapes.items():
            tensor = weights[prefix + name]
            if tensor.shape[tensor.ndim - len(shape) :] != shape:
                raise RuntimeError(f"size mismatch for {name}: {tuple(tensor.shape)} against {tuple(shape)}")
            parts.append(tensor.reshape(*tensor.shape[: tensor.ndim - len(shape)], -1))
        return torch.cat(parts, dim=-1)


def copy_alike(target: Tensor, source: Tensor, name: str) -> None:
    """Copy a tensor in place, without broadcasting.

    Raises:
        RuntimeError: the shapes differ.
    """
    if target.shape != source.shape:
        raise RuntimeError(f"size mismatch for {name}: {tuple(source.shape)} against {tuple(target.shape)}")
    target.copy_(source)


class Posterior(nn.Module, ABC):
    """A distribution over the parameters of a module.

    Attributes:
        kind: registered name of the class, stored with a classifier.
        stochastic: False if all samples are equal.
        symmetric: True if the mirror image of a sample has the same density, and `draw` gives it at the negative seed.
    """

    kind: ClassVar[str]
    stochastic: ClassVar[bool] = True
    symmetric: ClassVar[bool] = False

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        if not any(True for _ in module.parameters()):
            raise InputError("the module has no parameters", remedy="a posterior needs at least one weight")

    @property
    def device(self) -> torch.device:
        """Device of the posterior, and of the generator that `sample` expects."""
        return next(itertools.chain(self.parameters(), self.buffers())).device

    @abstractmethod
    def sample(self, generator: torch.Generator) -> Weights:
        """One draw: a tensor for each parameter name, differentiable in the posterior's own parameters.

        The result may also contain buffers by name, which replace the module's buffers in passes at this draw.
        """

    def draw(self, seed: int) -> Weights:
        """The sample of a seed; if `symmetric`, the negative seed gives its mirror image."""
        return self.sample(torch.Generator(self.device).manual_seed(abs(seed)))

    @contextmanager
    def fixed(self) -> Iterator[None]:
        """Promise that the posterior does not change in the block, so that shared terms are computed once."""
        yield

    @property
    def members(self) -> int | None:
        """Number of equally likely values of the weights; None if they cannot be enumerated."""
        return None

    def member(self, k: int) -> Weights:
        """The k-th member, in the form of a draw.

        Raises:
            NotImplementedError: the members cannot be enumerated.
        """
        raise NotImplementedError(f"{type(self).__name__} has no members")

    @abstractmethod
    def trainable(self) -> list[nn.Parameter]:
        """Parameters for the optimiser."""

    def undecayed(self) -> list[nn.Parameter]:
        """Trainable parameters that are exempt from weight decay; none by default."""
        return []

    @abstractmethod
    def export(self) -> dict[str, Tensor]:
        """The state as named tensors, one for each parameter of the module and each quantity."""

    @abstractmethod
    def restore(self, tensors: Weights) -> None:
        """Load the result of `export`."""


class PointPosterior(Posterior):
    """Point mass at the parameters of the module itself, or at given weights.

    Args:
        module: the module; its parameters are shared, not copied.
        weights: a tensor for each parameter name, if they differ from the module's own; may contain buffers by name.
    """

    kind = "point"
    stochastic = False

    def __init__(self, module: nn.Module, weights: Weights | None = None) -> None:
        nn.Module.__init__(self)
        self._own = dict(module.named_parameters())
        self._weights = None if weights is None else dict(weights)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(iter(self.draw(0).values())).device

    def are_modules_own(self, weights: Weights) -> bool:
        """True if these weights are the parameters of the module itself."""
        return weights is self._own

    def draw(self, seed: int) -> Weights:
        """The weights, the same at every call."""
        return self._own if self._weights is None else self._weights

    def sample(self, generator: torch.Generator) -> Weights:
        """The weights, the same at every call."""
        return self.draw(0)

    def trainable(self) -> list[nn.Parameter]:
        """The module's parameters."""
        return list(self._own.values())

    def export(self) -> dict[str, Tensor]:
        """The weights by parameter name, and its buffers, if any, by buffer name."""
        weights = self._own if self._weights is None else self._weights
        kinds = {name: "value" if name in self._own else "buffer" for name in weights}
        return {f"{kinds[name]}.{name}": tensor.detach() for name, tensor in weights.items()}

    def restore(self, tensors: Weights) -> None:
        """Copy the weights into the module."""
        with torch.no_grad():
            for name, parameter in self._own.items():
                copy_alike(parameter, tensors[f"value.{name}"], name)


def prior_divergence(mean: Tensor, log_std: Tensor, prior_std: float) -> Tensor:
    """KL(N(mean, std^2) || N(0, prior_std^2)) of each weight, in nats (Adv-BNN eq. 6).

    Args:
        mean: mean of each weight.
        log_std: log standard deviation of each weight.
        prior_std: standard deviation s0 of the prior.

    Returns:
        log(s0 / std) + (std^2 + mean^2) / (2 s0^2) - 1/2, shaped as `mean`.
    """
    scaled = (torch.exp(2 * log_std) + mean.square()) / (2 * prior_std**2)
    return math.log(prior_std) - log_std + scaled - 0.5


def matched_divergence(mean: Tensor, log_std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(0, mean^2 + std^2)) of each weight, in nats: 1/2 log(1 + mean^2 / std^2).

    The enhanced Bayesian regulariser of hierarchical variational inference (its Algorithm 1, line 7): the
    divergence to the nearest zero-mean Gaussian, so it never shrinks a standard deviation.
    """
    return 0.5 * torch.log1p(mean.square() * torch.exp(-2 * log_std))


@dataclass
class _Fixed:
    """Cache of a Gaussian's standard deviation and noise in a `fixed` block."""

    std: Tensor | None = None
    seed: int = 0
    noise: Tensor | None = None


class GaussianPosterior(Posterior):
    """Mean-field Gaussian over every parameter: q(w) = prod N(mean, exp(log_std)^2) (Adv-BNN eq. 5).

    Args:
        module: its parameters are the initial mean and are not used afterwards.
        std: initial standard deviation of each weight, > 0; or a tensor for each parameter name, shaped as the
            parameter, >= 0. Parameters that it leaves out are deterministic.

    Raises:
        InputError: a standard deviation is out of range, or has an unknown name or another shape.

    Attributes:
        layout: positions of the parameters in the flat vectors.
        mean: mean of all weights, `(size,)`.
        log_std: log standard deviation of all weights, `(size,)`.
    """

    kind = "gaussian"
    symmetric = True

    def __init__(self, module: nn.Module, std: float | Weights = 0.05) -> None:
        super().__init__(module)
        self.layout = FlatLayout(module)
        parameters = dict(module.named_parameters())
        flat = self.layout.flatten(parameters).detach()
        self.mean = nn.Parameter(flat.clone())
        if isinstance(std, Mapping):
            log_std = self.layout.flatten(_deviations(std, parameters)).log()
        elif math.isfinite(std) and std > 0:
            log_std = torch.full_like(flat, math.log(std))
        else:
            raise InputError("initial standard deviation", expected="a finite number > 0", got=std)
        self.log_std = nn.Parameter(log_std)
        self._fixed = _Fixed()

    @contextmanager
    def fixed(self) -> Iterator[None]:
        """Compute the standard deviation once in a block, and the noise of an antithetic pair once."""
        before = self._fixed.std
        self._fixed.std = self.log_std.detach().exp()
        try:
            yield
        finally:
            self._fixed.std, self._fixed.noise = before, None

    def noise(self, generator: torch.Generator) -> Tensor:
        """Standard normal noise of one draw, `(size,)`."""
        return torch.empty_like(self.mean).normal_(generator=generator)

    def weights(self, noise: Tensor) -> Weights:
        """W = mean + exp(log_std) * noise (Adv-BNN section 3, Bayes by backprop), for each parameter name."""
        return self._weights(noise, self.log_std.exp())

    def _weights(self, noise: Tensor, std: Tensor, sign: int = 1) -> Weights:
        return self.layout.views(torch.addcmul(self.mean, std, noise, value=sign))

    def sample(self, generator: torch.Generator) -> Weights:
        """One draw, differentiable in mean and log standard deviation."""
        return self.weights(self.noise(generator))

    def draw(self, seed: int) -> Weights:
        """The sample of a seed; the negative seed gives its reflection about the mean."""
        number, sign, fixed = abs(seed), -1 if seed < 0 else 1, self._fixed
        if fixed.noise is not None and fixed.seed == number:
            noise = fixed.noise
        else:
            noise = self.noise(torch.Generator(self.mean.device).manual_seed(number))
        if fixed.std is None or (torch.is_grad_enabled() and self.log_std.requires_grad):
            return self._weights(noise, self.log_std.exp(), sign)
        fixed.seed, fixed.noise = number, noise
        return self._weights(noise, fixed.std, sign)

    def trainable(self) -> list[nn.Parameter]:
        """Mean and log standard deviation."""
        return [self.mean, self.log_std]

    def undecayed(self) -> list[nn.Parameter]:
        """The log standard deviation: weight decay would pull the standard deviation to 1."""
        return [self.log_std]

    def selected(self, names: Iterable[str] | None = None) -> tuple[Tensor, Tensor]:
        """Flat mean and log standard deviation of the named parameters, by default of all."""
        if names is None:
            return self.mean, self.log_std
        means, log_stds = self.layout.views(self.mean), self.layout.views(self.log_std)
        chosen = list(names)
        return (
            torch.cat([means[name].reshape(-1) for name in chosen]),
            torch.cat([log_stds[name].reshape(-1) for name in chosen]),
        )

    def kl(self, prior_std: float, names: Iterable[str] | None = None) -> Tensor:
        """KL(q || N(0, prior_std^2)), a scalar in nats, summed over the weights of `names` or of all.

        Equals the sum of `prior_divergence`, computed by dot products in half the time.
        """
        mean, log_std = self.selected(names)
        std = log_std.exp()
        scaled = (std.dot(std) + mean.dot(mean)) / (2 * prior_std**2)
        return scaled - log_std.sum() + len(mean) * (math.log(prior_std) - 0.5)

    def export(self) -> dict[str, Tensor]:
        """Mean and log standard deviation by parameter name."""
        means = self.layout.views(self.mean.detach())
        log_stds = self.layout.views(self.log_std.detach())
        return {f"mean.{n}": t for n, t in means.items()} | {f"log_std.{n}": t for n, t in log_stds.items()}

    def restore(self, tensors: Weights) -> None:
        """Load mean and log standard deviation."""
        with torch.no_grad():
            for quantity in ("mean", "log_std"):
                getattr(self, quantity).copy_(self.layout.flatten(tensors, f"{quantity}."))


def _deviations(std: Weights, parameters: Weights) -> Weights:
    """Standard deviation of each parameter, 0 where none is given."""
    for name, value in std.items():
        if name not in parameters:
            raise unknown_name("parameter of the module", name, parameters)
        if value.shape != parameters[name].shape or not bool((value.isfinite() & (value >= 0)).all()):
            expected = f"finite numbers >= 0 of shape {tuple(parameters[name].shape)}"
            got = tuple(value.shape) if value.shape != parameters[name].shape else "others"
            raise InputError(f"standard deviation of {name}", expected=expected, got=got)
    return {n: std[n].detach().to(each) if n in std else torch.zeros_like(each) for n, each in parameters.items()}


@torch.no_grad()
def gaussian_statistics(
    posterior: GaussianPosterior, divergence: Callable[[Tensor, Tensor], Tensor] | None = None
) -> dict[str, Any]:
    """Statistics of a Gaussian posterior, as in Tables 1 to 3 of hierarchical variational inference.

    Bias tensors are left out, as in that paper: they are nearly zero and would halve `kld`.

    Args:
        posterior: the posterior.
        divergence: regulariser of each weight in nats, from its mean and log standard deviation; None for no `kld`.

    Returns:
        `mean` (of mu) and `std` (of sigma): means over all weights. `kld`: the regulariser, averaged within each
        weight tensor and then over tensors, so that small tensors count as much as large ones. `tensors`: these values
        of each tensor, with its `name` and number of `weights`.
    """
    names = [name for name in posterior.layout if name.rpartition(".")[2] != "bias"] or list(posterior.layout)
    rows: list[dict[str, Any]] = []
    for name in names:
        mean, log_std = (value.double() for value in posterior.selected([name]))
        row = {"mean": mean, "std": log_std.exp()} | ({"kld": divergence(mean, log_std)} if divergence else {})
        rows.append({"name": name, "weights": len(mean), **{key: float(value.mean()) for key, value in row.items()}})
    size = sum(row["weights"] for row in rows)
    found: dict[str, Any] = {key: sum(row[key] * row["weights"] for row in rows) / size for key in ("mean", "std")}
    if divergence:
        found["kld"] = sum(row["kld"] for row in rows) / len(rows)
    return {**found, "tensors": rows}


class SamplePosterior(Posterior):
    """A set of equally likely samples of all weights, such as those of a Markov chain.

    Args:
        module: the module that the weights belong to.
        samples: flat samples `(count, size)`, or for each sample a tensor for each parameter name; by default one, the
            module's current weights.

    Attributes:
        layout: positions of the parameters in a sample.
        samples: the samples, `(count, size)`.
    """

    kind = "samples"
    samples: Tensor

    def __init__(self, module: nn.Module, samples: Tensor | Sequence[Weights] | None = None) -> None:
        super().__init__(module)
        self.layout = FlatLayout(module)
        if samples is None:
            samples = [dict(module.named_parameters())]
        if not isinstance(samples, Tensor):
            samples = torch.stack([self.layout.flatten(each).detach() for each in samples])
        self.register_buffer("samples", samples)
        self._differ: tuple[Tensor, int, bool] | None = None

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        """True if any two samples differ."""
        known, version = self._differ, 0 if self.samples.is_inference() else self.samples._version
        if known is None or known[0] is not self.samples or known[1] != version:
            first = self.samples[0]
            differ = any(not torch.equal(sample, first) for sample in self.samples[1:])
            known = self._differ = (self.samples, version, differ)
        return known[2]

    @property
    def members(self) -> int:
        """Number of samples."""
        return len(self.samples)

    def member(self, k: int) -> Weights:
        """The k-th sample."""
        return self.layout.views(self.samples[k])

    def sample(self, generator: torch.Generator) -> Weights:
        """One of the samples, drawn uniformly."""
        index = torch.randint(len(self.samples), (1,), generator=generator, device=generator.device)
        return self.layout.views(self.samples.index_select(0, index.to(self.samples.device))[0])

    def trainable(self) -> list[nn.Parameter]:
        """Empty: a sampler updates the samples."""
        return []

    def export(self) -> dict[str, Tensor]:
        """The samples by parameter name, `(count, *shape)`."""
        return {f"samples.{name}": tensor for name, tensor in self.layout.views(self.samples).items()}

    def restore(self, tensors: Weights) -> None:
        """Load any number of samples."""
        self.samples = self.layout.flatten(tensors, "samples.").to(self.samples.device)


class GeneratorPosterior(Posterior):
    """The distribution of G(z), z ~ N(0, 1), for a net G that outputs all weights (APD section 3).

    Args:
        module: the module whose weights are generated.
        latent: dimension of z; APD's released code: 32.
        hidden: widths of G's hidden ReLU layers; APD section 5.2: three layers of 100.

    Attributes:
        layout: positions of the parameters in G's output.
        generator: G, from `(batch, latent)` to `(batch, size)`.
    """

    kind = "generator"

    def __init__(self, module: nn.Module, latent: int = 32, hidden: tuple[int, ...] = (100, 100, 100)) -> None:
        super().__init__(module)
        self.layout = FlatLayout(module)
        device = next(module.parameters()).device
        self.generator = perceptron((latent, *hidden, self.layout.size)).to(device)

    @property
    def latent(self) -> int:
        """Dimension of z."""
        first: nn.Linear = self.generator[0]  # type: ignore[assignment]
        return first.in_features

    def generate(self, count: int, generator: torch.Generator) -> Tensor:
        """Flat samples `(count, size)`, differentiable in G's parameters."""
        z = torch.empty((count, self.latent), device=self.device).normal_(generator=generator)
        with torch.autocast(self.device.type, enabled=False):
            flat: Tensor = self.generator(z)
        return flat

    def sample(self, generator: torch.Generator) -> Weights:
        """One draw."""
        return self.layout.views(self.generate(1, generator)[0])

    def trainable(self) -> list[nn.Parameter]:
        """G's parameters."""
        return list(self.generator.parameters())

    def export(self) -> dict[str, Tensor]:
        """G's parameters."""
        return {f"generator.{name}": tensor for name, tensor in self.generator.state_dict().items()}

    def restore(self, tensors: Weights) -> None:
        """Load a generator of any hidden widths whose output size is the number of weights."""
        prefix = "generator."
        state = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        order = sorted((int(name.partition(".")[0]), name) for name in state if name.endswith(".weight"))
        weights = [state[name] for _, name in order]
        if not weights or len(weights[-1]) != self.layout.size:
            raise RuntimeError(f"no generator with {self.layout.size} outputs")
        widths = (weights[0].shape[1], *map(len, weights))
        layers = [layer for layer in self.generator if isinstance(layer, nn.Linear)]
        if widths != (layers[0].in_features, *(layer.out_features for layer in layers)):
            self.generator = perceptron(widths).to(self.device)
        self.generator.load_state_dict(state)


def perceptron(widths: tuple[int, ...]) -> nn.Sequential:
    """Linear layers of the given widths with ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
