"""Checks of what the methods of a training plugin return, with messages that name the method and its line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from advbench.errors import PluginError
from advbench.registry import files

Terms = Mapping[str, Tensor]
KEEP = "keep tensors, without .item() or float()"
MEAN = "take the mean over images: without reduction='none', or with .mean()"
DEPEND = "compute them from clf(x), without detach() or no_grad()"
CHAIN = "compute it from clf.at(draw, x), without detach() or no_grad()"


def shown(value: object) -> str:
    """An object for messages: None, the shape of a tensor, or its type."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return "None" if value is None else f"an object of type {type(value).__name__}"


def wrong(owner: object, method: str, expected: str, got: str, remedy: str) -> PluginError:
    """Error of a method that returned something else."""
    return PluginError(files.place_of_method(type(owner), method), expected=expected, got=got, remedy=remedy)


def checked(owner: object, method: str, found: Any, kind: type[Any], remedy: str) -> Any:
    """The result of a method that returns an object of a class.

    Raises:
        PluginError: it is of another class.
    """
    if isinstance(found, kind):
        return found
    raise wrong(owner, method, f"a {kind.__name__}", shown(found), remedy)


def checked_images(owner: object, images: object, count: int) -> Tensor:
    """The result of `perturb`.

    Raises:
        PluginError: it is not a tensor of as many images.
    """
    if isinstance(images, Tensor) and images.ndim and len(images) == count:
        return images
    raise wrong(owner, "perturb", f"a tensor of {count} images", shown(images), "write: return the images to train on")


def checked_scalars(owner: object, method: str, found: object) -> dict[str, Tensor]:
    """The result of a method that returns scalars to monitor, by name.

    Raises:
        PluginError: it is something else.
    """
    if not isinstance(found, Mapping):
        raise wrong(owner, method, "scalars by name", shown(found), 'write: return {"loss": loss.detach()}')
    for name, value in found.items():
        if not isinstance(value, Tensor):
            raise wrong(owner, method, f"a scalar tensor as {name!r}", shown(value), KEEP)
        if value.numel() != 1:
            raise wrong(owner, method, f"a scalar tensor as {name!r}", shown(value), "return its .mean()")
    return {name: value.detach().reshape(()) for name, value in found.items()}


def checked_loss(owner: object, found: object, count: int) -> tuple[Terms, Tensor]:
    """The result of a `loss` in terms.

    Raises:
        PluginError: it is not a pair of scalars by name, which depend on the weights, and logits.
    """
    remedy = 'write: return {"loss": loss}, logits'
    terms, logits = _pair(owner, found, Mapping, "terms by name, and logits", remedy)
    if not terms:
        raise wrong(owner, "loss", "terms by name, and logits", "no term", remedy)
    for name, term in terms.items():
        if not isinstance(term, Tensor):
            raise wrong(owner, "loss", f"a scalar tensor as term {name!r}", shown(term), KEEP)
        if term.ndim:
            raise wrong(owner, "loss", f"a scalar tensor as term {name!r}", shown(term), MEAN)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != count:
        raise wrong(owner, "loss", f"logits of shape ({count}, classes)", shown(logits), remedy)
    if not any(term.requires_grad for term in terms.values()):
        raise wrong(owner, "loss", "terms that depend on the weights", "constants", DEPEND)
    return terms, logits


def checked_chain_loss(owner: object, found: object) -> tuple[Tensor, Tensor]:
    """The result of the `loss` of a chain.

    Raises:
        PluginError: it is not a pair of a scalar, which depends on the weights, and logits.
    """
    remedy = "write: return loss, logits"
    loss, logits = _pair(owner, found, Tensor, "a scalar tensor, and logits", remedy)
    if loss.numel() != 1:
        raise wrong(owner, "loss", "a scalar tensor", shown(loss), MEAN)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise wrong(owner, "loss", "logits of shape (images, classes)", shown(logits), remedy)
    if not loss.requires_grad:
        raise constant_loss(owner)
    return loss, logits


def constant_loss(owner: object) -> PluginError:
    """Error of a chain whose loss does not depend on the chain's weights."""
    return wrong(owner, "loss", "a loss that depends on the chain's weights", "a constant", CHAIN)


def _pair(owner: object, found: object, first: type[Any], expected: str, remedy: str) -> tuple[Any, Any]:
    """A pair whose first part is of a class."""
    if not isinstance(found, tuple | list):
        raise wrong(owner, "loss", expected, shown(found), remedy)
    if len(found) != 2 or not isinstance(found[0], first):
        got = f"a {type(found).__name__} of {' and '.join(map(shown, found))}"
        raise wrong(owner, "loss", expected, got, remedy)
    return found[0], found[1]
