"""Classifier: a module and a posterior over its weights, which stays random in evaluation mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from advbench.errors import AdvbenchError, InputError, NoGradientError, PluginError, out_of_memory
from advbench.keys import derive, isolated_rng
from advbench.models.gradient_watch import BackwardWatch, Passes
from advbench.models.memory import keep
from advbench.models.noise import Noise
from advbench.models.posterior import PointPosterior, Posterior, Weights
from advbench.registry import files

ExampleLoss = Callable[[Tensor, Tensor], Tensor]
# Maps the log-softmax of draws `(draws, batch, classes)` and rows of labels to one value per image, `(batch,)`.
JointObjective = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SlopedLoss:
    """An `ExampleLoss` with a closed-form gradient, which spares a pass of autograd.

    Attributes:
        value: maps logits `(n, classes)` and labels `(n,)` to one loss per image, `(n,)`.
        slope: maps the same arguments to the gradient of each loss with respect to the logits, `(n, classes)`.
    """

    value: ExampleLoss
    slope: ExampleLoss

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        """The value."""
        return self.value(logits, y)


# Largest number of members through which fresh draws cycle: twice the default number of draws in an evaluation.
CYCLED = 40


class Draw(NamedTuple):
    """One draw from a classifier: weights, and the seed of the noise inside the module (if negative, see `draw`)."""

    weights: Weights
    seed: int


class Gradient(NamedTuple):
    """Gradient of a loss with respect to the images, and the logits that it was computed from.

    Attributes:
        value: gradient of the loss of each image, `(batch, channels, height, width)`.
        logits: logits of each draw, detached, `(samples, batch, classes)`.
    """

    value: Tensor
    logits: Tensor


class Classifier(nn.Module):
    """A module and a posterior over its weights: images in [0, 1] in, logits of a fresh draw out.

    Any attack library may treat it as an `nn.Module`. `.eval()` and `.train()` change neither the mode of the module
    inside nor the randomness, so that no library can switch off a random defense.

    Once a classifier exists, the process keeps up to 1 GiB of the CPU memory that torch frees (see `memory.keep`).

    Args:
        module: maps images `(batch, channels, height, width)` to logits `(batch, classes)`.
        posterior: distribution over the module's weights; by default a point mass at their current values.
        noise: a `Noise` to install in the module, or True if the module draws random numbers itself.

    Attributes:
        chunk: maximum number of images per forward pass of the module; None for no limit. A draw serves the whole
            batch, so the chunk size changes results by rounding only. Batches of a module with noise are never split.
        passes: number of images passed so far, and whether all logits and gradients were finite.
        labels: labels of the images under attack, `(batch,)`, or labels and targets, `(batch, 2)`; None if unknown.
    """

    def __init__(self, module: nn.Module, posterior: Posterior | None = None, *, noise: bool | Noise = False) -> None:
        super().__init__()
        keep()  # attacks, trainings and evaluations all begin with a classifier
        if isinstance(noise, Noise):
            noise.install(module)
        self.module = module
        self.posterior = PointPosterior(module) if posterior is None else posterior
        _check_parallel(module, self.posterior)
        self.noise = noise
        self.chunk: int | None = None
        self.passes = Passes()
        self.labels: Tensor | None = None
        self._isolated = False
        self._aliases, self._buffer_aliases = _aliases(module, "named_parameters"), _aliases(module, "named_buffers")
        self._seed = 0
        self._drawn = 0
        self._classes: int | None = None

    @property
    def stochastic(self) -> bool:
        """True if two calls on the same images can differ."""
        noisy = self.noise.acts if isinstance(self.noise, Noise) else self.noise
        return noisy or self.posterior.stochastic

    def train(self, mode: bool = True) -> Self:
        """Record the mode; it affects neither the module inside nor the randomness."""
        self.training = mode
        return self

    def reseed(self, seed: int) -> Self:
        """Restart the sequence of fresh draws; the same seed gives the same sequence."""
        self._seed, self._drawn = seed, 0
        return self

    @contextmanager
    def isolated(self) -> Iterator[Passes]:
        """Count passes from zero in a block; restore the counts and the sequence of draws afterwards.

        Passes in a nested block, as when an attack calls another attack, also count for the outer one.
        """
        outer = self._isolated
        before = self.passes, self._seed, self._drawn
        self.passes, self._isolated = Passes(self.passes.watch if outer else None), True
        try:
            yield self.passes
        finally:
            inner = self.passes
            self.passes, self._seed, self._drawn = before
            self._isolated = outer
            if outer:
                self.passes.add(inner)

    @contextmanager
    def attacked(self, rows: Tensor) -> Iterator[None]:
        """Set `labels` in a block: labels `(batch,)`, or labels and targets `(batch, 2)`, of the images under attack.

        The posterior must not change in the block.
        """
        before, self.labels = self.labels, rows
        try:
            with self.posterior.fixed():
                yield
        finally:
            self.labels = before

    @property
    def members(self) -> int | None:
        """Number of equally likely deterministic classifiers to draw from; None if they cannot be enumerated."""
        if not self.stochastic:
            return 1
        noisy = self.noise.acts if isinstance(self.noise, Noise) else self.noise
        return None if noisy else self.posterior.members

    def member(self, k: int) -> Draw:
        """The k-th of the members."""
        return Draw(self.posterior.member(k), k)

    @property
    def _cycle(self) -> int:
        """Number of members of the posterior that fresh draws cycle through; 0 if draws are independent."""
        members = self.posterior.members if self.posterior.stochastic else None
        return members if members is not None and members <= CYCLED else 0

    def next_seed(self) -> int:
        """Return the seed of the next fresh draw and advance the sequence.

        Draws from a posterior with few members run through one random permutation of them after another: drawn with
        replacement, as many draws as members would miss a third of them.
        """
        self._drawn += 1
        seed, members = derive(self._seed, "draw", self._drawn - 1), self._cycle
        if not members:
            return seed
        cycle, position = divmod(self._drawn - 1, members)
        order = torch.randperm(members, generator=torch.Generator().manual_seed(derive(self._seed, "members", cycle)))
        return seed // 2 // members * members + int(order[position])

    def fresh_seeds(self, n: int) -> list[int]:
        """Seeds of `n` fresh draws whose mean an attack uses; not suited to confidence intervals.

        With at most `n` members, each is taken once, and the mean is exact. Gaussian draws come in antithetic pairs
        (mirror images): terms that are odd in the noise cancel in their mean.
        """
        members = self.members
        if members is not None and members <= min(n, CYCLED):
            return list(range(members))
        if not self.mirrored:
            return [self.next_seed() for _ in range(n)]
        firsts = [self.next_seed() for _ in range((n + 1) // 2)]
        return [seed for first in firsts for seed in (first, -first)][:n]

    @property
    def mirrored(self) -> bool:
        """True if `fresh_seeds` come in antithetic pairs: the negative of a seed gives the mirror image of its draw."""
        noise = isinstance(self.noise, Noise) and self.noise.acts and self.noise.symmetric
        return noise or (self.posterior.stochastic and self.posterior.symmetric)

    def draw(self, seed: int | None = None) -> Draw:
        """A fresh draw, or the draw of a given seed.

        If weights or noise are symmetric, the negative of a seed gives the mirror image of its draw. If the posterior
        has few members, the draw is the member numbered by the seed modulo their number.
        """
        if seed is None:
            seed = self.next_seed()
        if self._cycle:
            return Draw(self.posterior.member(abs(seed) % self._cycle), seed)
        return Draw(self.posterior.draw(seed), seed)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(batch, classes)` of one fresh draw, shared by the batch, for images in [0, 1]."""
        return self.at(self.draw(), x)

    def draws(self, x: Tensor, n: int) -> Tensor:
        """Logits of `n` fresh draws, `(n, batch, classes)`."""
        return torch.stack([self(x) for _ in range(n)])

    def at(self, draw: Draw, x: Tensor, offset: int = 0) -> Tensor:
        """Logits `(batch, classes)` at a given draw, differentiable in `x` and in the draw's weights.

        Args:
            draw: the draw.
            x: images `(batch, channels, height, width)`.
            offset: position of the first image, if `x` is part of a longer sequence that is evaluated at this draw: all
                images share its weights, and the noise inside the module is drawn afresh at each offset.
        """
        self.passes.note(len(x))
        watched = x.requires_grad and torch.is_grad_enabled()
        if watched:
            x = x.view_as(x)
        ranges = self._chunks(len(x))
        with _named_errors():
            if len(ranges) == 1:
                logits = self._logits(draw, x, offset)
            elif torch.is_grad_enabled():
                parts = [
                    checkpoint(self._logits, draw, x[r], r.start, use_reentrant=False, preserve_rng_state=False)
                    for r in ranges
                ]
                logits = torch.cat(parts)
            else:
                logits = torch.cat([self._logits(draw, x[r], r.start) for r in ranges])
        finite = logits.detach().isfinite().all()
        if watched:  # another library's attack may turn a zero gradient into NaN images: not the model's fault
            finite = finite | ~x.detach().isfinite().all()
        self.passes.note_finite(finite)
        if watched and logits.requires_grad:
            BackwardWatch(self.passes, x, logits, self.labels)
        elif watched:
            self.passes.note_cut(len(x))
        return logits

    def input_gradient(
        self,
        x: Tensor,
        y: Tensor,
        loss: ExampleLoss,
        samples: int = 1,
        draws: Sequence[Draw] | None = None,
        *,
        tilt: float = 0.0,
    ) -> Gradient:
        """Gradient with respect to the images of the loss averaged over fresh draws.

        With a `tilt` t other than 0 the average is log(mean of exp(t loss)) / t, whose gradient weighs each draw of
        each image by exp(t loss): of cross-entropy -log p(y) at t = -1 it is the cross-entropy of the mean softmax,
        -log(mean of p(y)). The weights are stored relative to the largest so far, so that none underflows.

        Memory use is that of one draw (and one chunk), whatever `samples`. Gradients of parameters are neither computed
        nor changed. A deterministic classifier takes one pass, and one with at most `samples` members one pass per
        member.

        Args:
            x: images `(batch, channels, height, width)`.
            y: labels `(batch,)`.
            loss: maps logits `(n, classes)` and labels `(n,)` to one loss per image, `(n,)`.
            samples: number of draws to average over (expectation over transformation).
            draws: draws to average over, in place of fresh ones.
            tilt: t of the tilted average, in 1 / units of the loss; 0 for the arithmetic mean.
        """
        seeds = self.fresh_seeds(samples) if draws is None else range(len(draws))
        samples = len(seeds)
        total = weight = highest = torch.empty(())  # until the first draw
        logits: list[Tensor] = []
        slopes: list[Tensor] = []
        for index, seed in enumerate(seeds):
            with torch.no_grad():
                draw = self.draw(seed) if draws is None else draws[index]
            gradient, found, slope = self._draw_gradient(draw, x, y, loss)
            if tilt:
                exponent = tilt * loss(found, y).view(-1, *[1] * (x.ndim - 1))
                if index == 0:
                    total, weight, highest = gradient, torch.ones_like(exponent), exponent
                else:
                    rise = torch.maximum(highest, exponent)
                    fade, share = (highest - rise).exp(), (exponent - rise).exp()
                    total, weight, highest = total * fade + share * gradient, weight * fade + share, rise
            else:
                total = gradient if index == 0 else total + gradient
            logits.append(found)
            slopes.append(slope)
        largest = total.abs().flatten(1).amax(1)  # 16 times faster than the L-inf norm of torch; keeps NaN
        self.passes.note_gradient(largest, logits, slopes, y)
        self.passes.note(samples * len(x), samples * len(x))
        if tilt:
            total = total / weight
        elif samples > 1:
            total = total / samples
        return Gradient(total, torch.stack(logits) if samples > 1 else logits[0][None])

    def mean_gradient(self, x: Tensor, y: Tensor, loss: ExampleLoss, samples: int) -> Gradient:
        """Gradient with respect to the images of the loss of the mean softmax over fresh draws.

        The loss takes the logarithm of the mean as its logits. A first pass of all draws gives its derivative with
        respect to each draw's log-softmax; a second pass of each draw propagates that to the images. Memory use is that
        of one draw. (For cross-entropy, `input_gradient` with a tilt gives the same with half the passes.)

        Args:
            x: images `(batch, channels, height, width)`.
            y: labels `(batch,)`, or labels and targets.
            loss: as in `input_gradient`.
            samples: number of draws in the mean.
        """
        return self.joint_gradient(x, y, lambda log_probs, rows: loss(log_probs.logsumexp(0), rows), samples)

    def joint_gradient(self, x: Tensor, y: Tensor, objective: JointObjective, samples: int) -> Gradient:
        """Gradient with respect to the images of a joint function of the predictions of all fresh draws.

        A first pass of all draws gives the derivative with respect to each draw's log-softmax; a second pass of each
        draw propagates that to the images. Memory use is that of one draw. A single draw takes one pass.

        Args:
            x: images `(batch, channels, height, width)`.
            y: labels `(batch,)`, or labels and targets; -1 for none.
            objective: maps the draws' log-softmax `(draws, batch, classes)` and `y` to one value per image, `(batch,)`.
            samples: number of draws.
        """
        draws = [self.draw(seed) for seed in self.fresh_seeds(samples)]
        if len(draws) == 1:
            return self.input_gradient(x, y, lambda one, rows: objective(one.log_softmax(-1)[None], rows), 1, draws)
        with torch.no_grad():
            logits = torch.stack([self.at(draw, x) for draw in draws])
        with torch.enable_grad():
            leaf = logits.log_softmax(-1).requires_grad_()
            slopes = torch.autograd.grad(objective(leaf, y).sum(), leaf)[0]
        total = torch.zeros((), dtype=x.dtype, device=x.device)
        for draw, slope in zip(draws, slopes, strict=True):
            total = total + self._draw_gradient(draw, x, slope, _carried)[0]
        self.passes.note_gradient(total.abs().flatten(1).amax(1), list(logits), list(slopes), y)
        self.passes.note(len(draws) * len(x), len(draws) * len(x))
        return Gradient(total, logits)

    def _draw_gradient(self, draw: Draw, x: Tensor, y: Tensor, loss: ExampleLoss) -> tuple[Tensor, Tensor, Tensor]:
        parts = [self._chunk_gradient(draw, x[r], y[r], loss, r.start) for r in self._chunks(len(x))]
        if len(parts) == 1:
            return parts[0]
        gradients, logits, slopes = zip(*parts, strict=True)
        return torch.cat(gradients), torch.cat(logits), torch.cat(slopes)

    def _chunk_gradient(
        self, draw: Draw, x: Tensor, y: Tensor, loss: ExampleLoss, offset: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient of the loss with respect to the images, the logits, and the gradient with respect to the logits."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            with _named_errors():
                logits = self._logits(draw, leaf, offset)
            known = loss.slope(logits.detach(), y) if isinstance(loss, SlopedLoss) else None
            total = loss(logits, y).sum() if known is None else logits
            if not total.requires_grad:
                raise NoGradientError(
                    "the classifier has no gradient",
                    expected="logits that depend on the images through differentiable operations",
                    remedy="use an attack that needs no gradient",
                )
            with _named_errors():  # reentrant checkpoints may raise here
                if known is None:
                    gradient, slope = torch.autograd.grad(total, [leaf, logits], allow_unused=True)
                else:
                    (gradient,), slope = torch.autograd.grad(logits, [leaf], known, allow_unused=True), known
        if gradient is None:
            raise NoGradientError("the classifier has no gradient", expected="logits that depend on the images")
        return gradient, logits.detach(), slope

    def _chunks(self, count: int) -> list[slice]:
        # Noise inside a module is drawn for the whole batch; splitting it would change the draws.
        size = count if self.chunk is None or self.noise else self.chunk
        return [slice(start, min(start + size, count)) for start in range(0, count, max(size, 1))] or [slice(0, 0)]

    def _logits(self, draw: Draw, x: Tensor, offset: int) -> Tensor:
        if isinstance(self.noise, Noise) and self.noise.symmetric:
            seed = derive(abs(draw.seed), "noise", offset)
            with isolated_rng(seed, x.device), self.noise.mirrored(draw.seed < 0):
                logits = self._call(draw.weights, x)
        elif self.noise:
            # A module with randomness of its own may also draw from numpy's or Python's generators.
            seed = derive(draw.seed, "noise", offset)
            with isolated_rng(seed, x.device, everywhere=not isinstance(self.noise, Noise)):
                logits = self._call(draw.weights, x)
        else:
            logits = self._call(draw.weights, x)
        checked = _checked_logits(logits, x, self._classes)
        if self._classes is None:
            self._classes = checked.shape[1]
        return checked if checked.requires_grad else checked.clone()  # a module may reuse its output's memory

    def _call(self, weights: Weights, x: Tensor) -> Any:
        x = x.clone()  # a module may work in place
        if isinstance(self.posterior, PointPosterior) and self.posterior.are_modules_own(weights):
            return self.module(x)
        every_name = {name: weights[owner] for name, owner in self._aliases}
        every_name |= {name: weights[owner] for name, owner in self._buffer_aliases if owner in weights}
        return functional_call(self.module, every_name, (x,), tie_weights=False)

    def frozen(self, seed: int) -> Classifier:
        """The classifier fixed at the draw of `seed`; deterministic."""
        return self._frozen_at(self.draw(seed))

    def frozen_draws(self, count: int, seed: int) -> list[Classifier]:
        """Frozen draws: `count` of them, or every member once if there are at most twice as many.

        Args:
            count: number of draws.
            seed: seed of the draws.
        """
        if not self.stochastic:
            return [self]
        members = self.members
        if members is not None and members <= 2 * count:
            return [self._frozen_at(self.member(k)) for k in range(members)]
        return [self.frozen(derive(seed, "frozen", k)) for k in range(count)]

    def _frozen_at(self, draw: Draw) -> Classifier:
        weights = {name: tensor.detach() for name, tensor in draw.weights.items()}
        frozen = _FrozenNoise(self.module, draw.seed) if self.noise else Classifier(self.module)
        if not isinstance(self.posterior, PointPosterior) or not self.posterior.are_modules_own(draw.weights):
            frozen.posterior = PointPosterior(self.module, weights)
        frozen.chunk = self.chunk
        frozen.passes = self.passes  # passes of an attack on a frozen draw count as well
        return frozen


def _carried(logits: Tensor, slopes: Tensor) -> Tensor:
    """A scalar per image with the given gradient with respect to the log-softmax, `(batch,)`."""
    return (logits.log_softmax(1) * slopes).sum(1)


@contextmanager
def _named_errors() -> Iterator[None]:
    """Attribute errors in a pass to the model; advbench's own and out-of-memory errors pass unchanged."""
    try:
        yield
    except Exception as error:
        if isinstance(error, AdvbenchError) or out_of_memory(error):
            raise
        reason = (str(error).strip() or "no message").splitlines()[0]
        place = files.place_of(error)
        raise PluginError(f"{place and f'{place}: '}the model raised {type(error).__name__}", got=reason) from error


def _check_parallel(module: nn.Module, posterior: Posterior) -> None:
    """Refuse drawn weights in `nn.DataParallel`, whose replicas copy the module's own weights.

    Raises:
        InputError: the module holds `nn.DataParallel` and the posterior is not a point.
    """
    parallel = any(isinstance(part, nn.DataParallel) for part in module.modules())
    if parallel and not isinstance(posterior, PointPosterior):
        raise InputError(
            "module of the classifier",
            expected=f"one that a {posterior.kind} posterior can pass weights to",
            got="nn.DataParallel",
            remedy="pass the module inside it, and run one task per GPU",
        )


def _checked_logits(logits: Any, x: Tensor, classes: int | None) -> Tensor:
    """The output of a module, verified to be a table of logits.

    Raises:
        PluginError: it is anything else.
    """
    if isinstance(logits, Tensor):
        fits = logits.ndim == 2 and len(logits) == len(x) and classes in (None, logits.shape[1])
        if fits and logits.is_floating_point() and logits.layout == torch.strided and logits.device == x.device:
            return logits
    hint, got = "", type(logits).__name__
    if isinstance(logits, Tensor):
        kind = "" if logits.layout == torch.strided else f" {logits.layout}".replace("torch.", "")
        got = f"{logits.dtype}{kind} {tuple(logits.shape)} on {logits.device}"
    elif isinstance(logits, tuple | dict):
        hint = "wrap the module so that it returns the logits alone"
    expected = f"floating-point logits of shape ({len(x)}, {classes or 'classes'}) on {x.device}"
    raise PluginError("the model's output", expected=expected, got=got, remedy=hint)


def _aliases(module: nn.Module, listed: Literal["named_parameters", "named_buffers"]) -> list[tuple[str, str]]:
    """Each location of a parameter, or of a buffer, with the name under which the module lists it.

    Tied parameters have several locations. A submodule that is registered twice has one, which must be replaced once:
    `functional_call` would restore it wrongly when it searches for ties itself.
    """
    first: dict[int, str] = {}
    places = []
    for prefix, part in module.named_modules():
        for attribute, tensor in getattr(part, listed)(recurse=False, remove_duplicate=False):
            name = f"{prefix}.{attribute}" if prefix else attribute
            places.append((name, first.setdefault(id(tensor), name)))
    return places


class _FrozenNoise(Classifier):
    """A classifier with noise inside its module, fixed at one seed."""

    def __init__(self, module: nn.Module, seed: int) -> None:
        super().__init__(module, noise=True)
        self._frozen_seed = seed

    @property
    def stochastic(self) -> bool:
        return False

    def draw(self, seed: int | None = None) -> Draw:
        del seed
        return super().draw(self._frozen_seed)
