"""The border to models that advbench did not write: opens them, puts back what they change, and says what is odd."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from advbench.data.base import Data
from advbench.errors import InputError, ModelWarning, PluginError
from advbench.keys import derive, isolated_rng
from advbench.models.classifier import Classifier, Draw
from advbench.models.gradient_watch import Passes
from advbench.models.noise import Noise
from advbench.models.posterior import PointPosterior

PROBE_IMAGES = 32
DECLARED_IMAGES = 12  # of a classifier, which says itself whether it is random
PROBE_DRAWS = 24  # of two equally likely members, so many draws are the same one in one case of eight million

# Why a number that an evaluation of such a model gives may not be what it seems.
ODDITIES = {
    "probabilities": "the model returns probabilities in place of logits, which hides gradients from attacks: return "
    "what goes into its last softmax or sigmoid",
    "train_mode": "batch norm is in train mode, so that predictions depend on the other images of a batch: call "
    "model.eval() (dropout that is to stay on can be left in train mode)",
    "unseeded": "passes at one and the same draw differ, so results cannot be repeated: the model draws from a "
    "generator of its own, keeps state from pass to pass, or is random without Classifier(..., noise=True); draw from "
    "torch's, numpy's or Python's global generator",
    "equal_draws": "the classifier counts as random, but all draws are equal: its randomness does not act",
}


class Opened(NamedTuple):
    """A model that has been looked at.

    Attributes:
        clf: the model as a classifier.
        classes: their number.
        oddities: names of what is odd about it (`ODDITIES`).
    """

    clf: Classifier
    classes: int
    oddities: tuple[str, ...]


@torch.no_grad()
def opened(model: nn.Module, x: Tensor, *, probe: bool = False) -> Opened:
    """A model as a classifier, once it has passed a few images; warns of what is odd about it.

    A plain module counts as random, for none can be proved not to be. A probe can miss rare noise, so an evaluation
    must not rely on one; an attack may, since a wrong guess costs it passes or strength and never touches the verdict.

    Args:
        model: a `Classifier`, or any module on [0, 1] images.
        x: images, at least one; the first ones are passed.
        probe: take a plain module whose two draws are equal for deterministic.

    Raises:
        InputError: `model` is no module, or cannot be applied to the images.
        PluginError: its output has the wrong shape.
    """
    if not isinstance(model, nn.Module):
        raise InputError("model", expected="an nn.Module", got=type(model).__name__)
    x = x[: DECLARED_IMAGES if isinstance(model, Classifier) else PROBE_IMAGES]
    clf = model if isinstance(model, Classifier) else Classifier(model, noise=True)
    oddities = ["train_mode"] if _batch_dependent(clf) else []
    passes, clf.passes = clf.passes, Passes()  # which looking at a model does not add to
    try:
        with undisturbed(clf, 0, x.device):
            logits = clf.at(clf.draw(derive(0, "probe", 0)), x)
            if not _same(logits, clf.at(clf.draw(derive(0, "probe", 0)), x)):
                oddities.append("unseeded")
            if probe and clf is not model:
                clf.noise = not torch.equal(logits, clf.at(clf.draw(derive(0, "probe", 1)), x))
    except PluginError as error:
        if isinstance(error.__cause__, RuntimeError | ValueError):  # more often the images' fault than the model's
            raise InputError(
                "the model cannot be applied to the images",
                expected="images of the shape, dtype and device that it takes",
                got=f"{x.dtype} {tuple(x.shape)} on {x.device} ({str(error.__cause__).strip().splitlines()[0]})",
            ) from error.__cause__
        raise
    finally:
        clf.passes = passes
    if looks_like_probabilities(logits):
        oddities.append("probabilities")
    for name in oddities:
        warnings.warn(ModelWarning(ODDITIES[name]), stacklevel=3)
    return Opened(clf, logits.shape[1], tuple(oddities))


def _batch_dependent(clf: Classifier) -> bool:
    norms = [part for part in clf.module.modules() if isinstance(part, _BatchNorm)]
    return any(norm.training or norm.running_mean is None for norm in norms)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether logits of one draw agree; some kernels of a GPU add in an order that changes."""
    return torch.allclose(one, other, rtol=1e-3, atol=1e-4, equal_nan=True)


def looks_like_probabilities(logits: Tensor) -> bool:
    """Whether outputs `(batch, classes)` are softmax, log-softmax or sigmoid values."""
    values = logits.double()
    if values.numel() < 8 or bool((values == values[0, 0]).all()):
        return False
    ones = torch.ones(len(values), dtype=values.dtype, device=values.device)
    rounding = 1e-4 if logits.dtype in (torch.float32, torch.float64) else 0.05
    if torch.allclose(values.exp().sum(1), ones, atol=rounding):
        return True
    if bool((values < 0).any() | (values > 1).any()):
        return False
    softmax = torch.allclose(values.sum(1), ones, atol=rounding)
    # Sigmoids lie around 1/2, or near 0 and 1; small logits of a net that was not trained, around 0.
    # A few values show neither.
    sigmoids = values.numel() >= 24 and (0.35 < float(values.mean()) < 0.65 or float(values.max() - values.min()) > 0.5)
    return softmax or sigmoids


@contextmanager
def undisturbed(clf: Classifier, seed: int, device: torch.device) -> Iterator[None]:
    """Run a block of foreign code; put back what such code is known to leave changed.

    Modes, buffers, `requires_grad` and gradients of the model; the global random state of torch, numpy and Python,
    which the block finds seeded; the interpreter's trace function. No parameter needs a gradient meanwhile.
    """
    modes = [(module, module.training) for module in clf.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in clf.module.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    trainable = [parameter for parameter in clf.parameters() if not parameter.is_inference()]
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in trainable]
    trace = sys.gettrace()
    try:
        for parameter, _, _ in parameters:
            parameter.requires_grad_(False).grad = None
        with isolated_rng(seed, device, everywhere=True):
            yield
    finally:
        sys.settrace(trace)
        for parameter, needs, gradient in parameters:
            parameter.requires_grad_(needs).grad = gradient
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer
                if not buffer.is_inference():
                    buffer.copy_(value)
        for module, mode in modes:
            module.training = mode


def check_trained(name: str, clf: Classifier, data: Data) -> None:
    """Refuse a trained classifier whose randomness does not act, or whose posterior is over weights that do nothing.

    Args:
        name: of the training method, for the message.
        clf: what it returned.
        data: of the training.

    Raises:
        PluginError: all draws agree on images of the data and on random ones though the classifier counts as random; or
            no output depends on one of the posterior's parameters.
    """
    if not clf.stochastic or (isinstance(clf.noise, Noise) and clf.noise.faint):
        return
    x = _probed(clf, data)
    with undisturbed(clf, 0, x.device), clf.isolated():
        if draws_agree(clf, x):
            raise PluginError(
                f"the classifier that defense {name!r} trained",
                expected="draws that differ, for it counts as random",
                got=f"{PROBE_DRAWS} equal ones, on images of the data and on random ones",
                remedy="return one that is deterministic, or let the drawn weights or the noise reach the logits",
            )
    check_effect(name, clf, data)


def is_random(module: nn.Module, data: Data) -> bool:
    """Whether a module draws random numbers itself: passes at several seeds differ, on the data or on random images."""
    clf = Classifier(module, noise=True)
    x = _probed(clf, data)
    with undisturbed(clf, 0, x.device), clf.isolated():
        return not draws_agree(clf, x)


def _probed(clf: Classifier, data: Data) -> Tensor:
    """A few images of the data, and as many random ones."""
    x = data.batch(slice(8))[0].to(_device(clf))
    return torch.cat([x, torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).to(x)])


def check_effect(name: str, clf: Classifier, data: Data) -> None:
    """Refuse a posterior over weights that no output depends on, in evaluation mode.

    Raises:
        PluginError: it has some; names the first.
    """
    if isinstance(clf.posterior, PointPosterior):
        return
    x = data.batch(slice(2))[0].to(_device(clf))
    with undisturbed(clf, 0, x.device), clf.isolated(), torch.enable_grad():
        clf.module.eval()
        draw = clf.draw(0)
        names = {key for key, _ in clf.module.named_parameters()}
        weights = {key: value.detach().requires_grad_() for key, value in draw.weights.items() if key in names}
        logits = clf.at(Draw({**draw.weights, **weights}, draw.seed), x)
        if not logits.requires_grad:  # nothing can be said of a module without gradient
            return
        gradients = torch.autograd.grad(logits.sum(), list(weights.values()), allow_unused=True)
    unused = [key for key, gradient in zip(weights, gradients, strict=True) if gradient is None]
    if unused:
        raise PluginError(
            f"the posterior that defense {name!r} trained",
            expected="weights that the logits depend on",
            got=f"{unused[0]} and {len(unused) - 1} more without effect"
            if unused[1:]
            else f"{unused[0]} without effect",
            remedy="a layer that copies its weights, or a parameter of a layer that is never called, takes no draws",
        )


@torch.no_grad()
def draws_agree(clf: Classifier, x: Tensor) -> bool:
    """Whether the logits of many draws are equal, as they are where the randomness does not act."""
    members = clf.members
    draws = (
        map(clf.member, range(members)) if members else (clf.draw(derive(0, "probe", k)) for k in range(PROBE_DRAWS))
    )
    first = clf.at(next(draws), x)
    return all(torch.equal(first, clf.at(draw, x)) for draw in draws)


def _device(clf: Classifier) -> torch.device:
    tensors = [*clf.module.parameters(), *clf.posterior.parameters(), *clf.posterior.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")
