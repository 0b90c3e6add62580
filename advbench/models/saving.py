"""Serialisation of classifiers as tensors and JSON values, without pickle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from advbench.data.base import Data
from advbench.errors import InputError, PluginError
from advbench.keys import isolated_rng
from advbench.models.classifier import Classifier
from advbench.models.noise import Noise
from advbench.models.posterior import Posterior, Weights, copy_alike
from advbench.registry import files, registry


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Serialise tensors of any device as one safetensors file."""
    return safetensors.torch.save({n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()})


def read_tensors(raw: bytes) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, on the CPU."""
    return safetensors.torch.load(raw)


def export_classifier(clf: Classifier) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and JSON values from which `load_classifier` restores the classifier."""
    buffers = {f"buffer.{name}": tensor for name, tensor in clf.module.named_buffers()}
    noise = {"kind": kind_of(clf.noise), **clf.noise.values()} if isinstance(clf.noise, Noise) else clf.noise
    return buffers | clf.posterior.export(), {"posterior": kind_of(clf.posterior), "noise": noise}


def kind_of(part: Noise | Posterior) -> str:
    """Name of the class in the registry, or of the file that defines it."""
    return files.origin(type(part)) or part.kind


def load_classifier(module: nn.Module, tensors: Weights, values: Mapping[str, Any]) -> Classifier:
    """Restore an exported classifier on `module`, a module of the same architecture, which it then owns.

    Raises:
        InputError: posterior or noise are not registered, or tensors are missing or of the wrong shape.
    """
    if not isinstance(values, Mapping):
        raise InputError("stored classifier", expected="a table of values", got=type(values).__name__)
    kind = registry().load("posterior", str(values.get("posterior")))
    try:
        noise = stored_noise(values.get("noise", False))
        with torch.no_grad(), isolated_rng(0, "cpu"):  # the initial weights are replaced
            posterior: Posterior = kind(module)
            posterior.restore(tensors)
            for name, buffer in module.named_buffers():
                copy_alike(buffer, tensors[f"buffer.{name}"], name)
    except (KeyError, RuntimeError, TypeError) as error:
        raise InputError(f"stored classifier does not fit the module: {error}") from error
    clf = Classifier(module.eval(), posterior, noise=noise).requires_grad_(False)
    surplus = tensors.keys() - export_classifier(clf)[0].keys()
    if surplus:
        raise InputError(f"stored classifier does not fit the module, which lacks {min(surplus)}")
    return clf


def stored_noise(value: Any) -> bool | Noise:
    """Restore noise from its JSON value in `export_classifier`."""
    if not isinstance(value, Mapping):
        return bool(value)
    arguments = dict(value)
    make = registry().load("noise", str(arguments.pop("kind", None)))
    try:
        noise: Noise = make(**arguments)
    except TypeError as error:
        expected = "its constructor's arguments, stored as attributes of the same names"
        raise InputError(f"values of noise {make.__name__}", expected=expected, got=str(error)) from error
    return noise


@torch.no_grad()
def check_restores(
    name: str, clf: Classifier, module: nn.Module, raw: bytes, values: Mapping[str, Any], data: Data
) -> None:
    """Refuse a classifier that cannot be restored from its stored state, which would be evaluated in its place.

    The comparison runs on the CPU, to which the classifier is moved, so that a device need not hold a large posterior
    twice.
    """
    clf.cpu()
    x, other_net = data.batch(slice(8))[0].cpu(), False
    try:
        again = load_classifier(module, read_tensors(raw), values)
        same = again.stochastic == clf.stochastic
        same = same and torch.allclose(again.at(again.draw(0), x), clf.at(clf.draw(0), x), atol=1e-5, equal_nan=True)
        reason = "layers, hooks or modes that stored weights do not restore"
    except InputError as error:
        same, reason = False, str(error).removeprefix("stored classifier does not fit the module")
        other_net = reason != str(error)
    if same:
        return
    remedy = 'a defense with a net of its own declares it: architecture = "NAME", registered or in its own file'
    if reason.startswith("values of noise"):
        remedy = ""
    elif other_net:
        pass
    elif any(part.training for part in clf.module.modules()):
        reason, remedy = (
            "a module in training mode",
            "call .eval(), and pass noise=DropoutNoise() for dropout that stays on",
        )
    elif not torch.equal(clf.at(clf.draw(0), x), clf.at(clf.draw(0), x)):
        reason = "a module whose passes differ at one draw"
        remedy = "declare its randomness: Classifier(module, noise=True)"
        if isinstance(clf.noise, Noise):
            remedy = "noise draws from torch's generator (torch.rand, torch.randint), not from numpy's or Python's"
    raise PluginError(
        f"defense {name!r} returned a classifier that cannot be stored",
        expected="the architecture's own layers, with weights from a posterior of advbench.models.posterior",
        got=reason.lstrip(":, "),
        remedy=remedy,
    )
