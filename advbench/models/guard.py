"""Guards around third-party models: wrap them, restore the state that they change, and report defects."""

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
DECLARED_IMAGES = 12  # for a `Classifier`, which declares whether it is random
TIED = 0.01  # share of images with equal largest outputs from which their order decides too much
PROBE_DRAWS = 24  # with two equally likely members, all draws are equal with probability 1.2e-7

# Why an evaluation of such a model may mislead.
ODDITIES = {
    "probabilities": "the model returns probabilities in place of logits, which masks gradients: return "
    "the input of its last softmax or sigmoid",
    "train_mode": "batch norm is in train mode, so that predictions depend on the other images of a batch: call "
    "model.eval() (dropout that is meant to stay on can be left in train mode)",
    "unseeded": "two passes at the same draw differ, so results are not reproducible: the model draws from a "
    "generator of its own, keeps state from pass to pass, or is random without Classifier(..., noise=True); draw from "
    "torch's, numpy's or Python's global generator",
    "equal_draws": "the classifier counts as random, but all draws are equal: its randomness has no effect",
    "ties": "the largest probabilities are equal on over 1 % of images, so that predictions depend on the order of the "
    "classes: find what rounds, clips, saturates or shrinks the logits (members of an ensemble that disagree may "
    "tie as well)",
}


class Opened(NamedTuple):
    """A model that has been probed.

    Attributes:
        clf: the model as a classifier.
        classes: number of classes.
        oddities: names of its defects (keys of `ODDITIES`).
    """

    clf: Classifier
    classes: int
    oddities: tuple[str, ...]


@torch.no_grad()
def opened(model: nn.Module, x: Tensor, *, probe: bool = False) -> Opened:
    """Wrap a model as a classifier after passing a few images through it; warn of its defects.

    A plain module counts as random, because none can be proved deterministic. A probe can miss rare noise, so an
    evaluation must not rely on one; an attack may, since a wrong guess costs passes or strength and does not change the
    evaluation.

    Args:
        model: a `Classifier`, or any module on [0, 1] images.
        x: images, at least one; only the first ones are passed.
        probe: treat a plain module as deterministic if two of its draws are equal.

    Raises:
        InputError: `model` is not a module, or cannot be applied to the images.
        PluginError: its output has the wrong shape.
    """
    if not isinstance(model, nn.Module):
        raise InputError("model", expected="an nn.Module", got=type(model).__name__)
    x = x[: DECLARED_IMAGES if isinstance(model, Classifier) else PROBE_IMAGES]
    clf = model if isinstance(model, Classifier) else Classifier(model, noise=True)
    oddities = ["train_mode"] if _batch_dependent(clf) else []
    passes, clf.passes = clf.passes, Passes()  # probing does not count
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
                expected="images of the shape, dtype and device that it was built for",
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
    """True if logits of the same draw agree, up to the summation order of GPU kernels."""
    return torch.allclose(one, other, rtol=1e-3, atol=1e-4, equal_nan=True)


def looks_like_probabilities(logits: Tensor) -> bool:
    """True if outputs `(batch, classes)` are softmax, log-softmax or sigmoid values."""
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
    # Sigmoids lie around 1/2, or near 0 and 1; the small logits of an untrained net lie around 0.
    # With few values the two cannot be distinguished.
    sigmoids = values.numel() >= 24 and (0.35 < float(values.mean()) < 0.65 or float(values.max() - values.min()) > 0.5)
    return softmax or sigmoids


@contextmanager
def undisturbed(clf: Classifier, seed: int, device: torch.device) -> Iterator[None]:
    """Run a block of third-party code and restore the state that such code may change.

    Restored are the modes, buffers, `requires_grad` and gradients of the model, the interpreter's trace function, and
    the global random state of torch, numpy and Python, which is seeded for the block. No parameter requires a gradient
    inside the block.
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
    """Refuse a trained classifier whose randomness, or any of whose random weights, does not affect the logits.

    Args:
        name: name of the training method, for the message.
        clf: the classifier that it returned.
        data: the training data.

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
                expected="draws that differ, because it counts as random",
                got=f"{PROBE_DRAWS} equal ones, on images of the data and on random ones",
                remedy="return a deterministic one, or make the logits depend on the drawn weights or the noise",
            )
    check_effect(name, clf, data)


def is_random(module: nn.Module, data: Data) -> bool:
    """True if a module draws random numbers itself: passes at several seeds differ, on the data or on random images."""
    clf = Classifier(module, noise=True)
    x = _probed(clf, data)
    with undisturbed(clf, 0, x.device), clf.isolated():
        return not draws_agree(clf, x)


def _probed(clf: Classifier, data: Data) -> Tensor:
    """A few images of the data, and as many of uniform noise."""
    x = data.batch(slice(8))[0].to(_device(clf))
    return torch.cat([x, torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).to(x)])


def check_effect(name: str, clf: Classifier, data: Data) -> None:
    """Refuse a posterior over weights that no output depends on, in evaluation mode.

    Raises:
        PluginError: there are such weights; the message names the first.
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
        if not logits.requires_grad:  # a module without gradient cannot be checked
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
            remedy="draws do not reach layers that copy their weights, or layers that are never called",
        )


@torch.no_grad()
def draws_agree(clf: Classifier, x: Tensor) -> bool:
    """True if the logits of many draws are equal, that is, the randomness has no effect."""
    members = clf.members
    draws = (
        map(clf.member, range(members)) if members else (clf.draw(derive(0, "probe", k)) for k in range(PROBE_DRAWS))
    )
    first = clf.at(next(draws), x)
    return all(torch.equal(first, clf.at(draw, x)) for draw in draws)


def _device(clf: Classifier) -> torch.device:
    tensors = [*clf.module.parameters(), *clf.posterior.parameters(), *clf.posterior.buffers()]
    return tensors[0].device if tensors else torch.device("cpu")
