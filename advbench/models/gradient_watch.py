"""Counts passes, and watches whether logits and gradients are finite and whether gradients vanish."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from advbench.errors import PluginError

_PENDING = 64  # gradients that wait for their check, so that one check serves many
_ELEMENTS = 2**22  # of the logits that wait with them, so that memory stays small


class _Seen(NamedTuple):
    """Of one gradient: its largest absolute value for each image, and each draw's logits and slopes at them."""

    largest: Tensor
    logits: Sequence[Tensor]
    slopes: Sequence[Tensor]
    rows: Tensor | None

    @property
    def kind(self) -> tuple[object, ...]:
        """Gradients of one kind are checked together."""
        rows = None if self.rows is None else self.rows.ndim
        return len(self.logits), self.logits[0].shape[1], self.logits[0].dtype, rows


class Passes:
    """What an attack cost, and whether it had something to go by.

    Gradients are checked many at once, when somebody asks or enough have come: on a GPU each check of one costs more
    kernels than a small net's pass.

    Attributes:
        forward: images that passed a net.
        backward: images that passed it backward, for a gradient.
        gradients: images' gradients that were asked for, each over all its draws.
    """

    def __init__(self) -> None:
        self.forward = 0
        self.backward = 0
        self.gradients = 0
        self._vanished: int | Tensor = 0
        self._finite: list[Tensor] = []
        self._pending: list[_Seen] = []
        self._elements = 0

    def note_finite(self, finite: Tensor) -> None:
        """Note whether some logits or gradients were finite, `()`, bool."""
        self._finite.append(finite)
        if len(self._finite) >= _PENDING:
            self._finite = [torch.stack(self._finite).all()]

    def note_gradient(
        self, largest: Tensor, logits: Sequence[Tensor], slopes: Sequence[Tensor], rows: Tensor | None
    ) -> None:
        """Note a gradient with respect to images.

        Args:
            largest: its largest absolute value for each image, `(batch,)`.
            logits: of each draw that it is an average over, `(batch, classes)`.
            slopes: the gradient with respect to each of them.
            rows: labels, or labels and targets, `(batch, 2)`; None where they are not known.
        """
        self.gradients += len(largest)
        self._pending.append(_Seen(largest, logits, slopes, rows))
        self._elements += sum(each.numel() for each in logits)
        if len(self._pending) >= _PENDING or self._elements >= _ELEMENTS:
            self._check()

    def note_cut(self, images: int) -> None:
        """Note images for which somebody wanted a gradient that the model does not let through."""
        self.gradients += images
        self._vanished = self._vanished + images

    @property
    def vanished(self) -> int:
        """How many of the gradients were exactly zero."""
        self._check()
        return int(self._vanished)

    @property
    def finite(self) -> bool:
        """Whether all logits and gradients were finite."""
        self._check()
        return not self._finite or bool(torch.stack(self._finite).all())

    def _check(self) -> None:
        kinds: dict[tuple[object, ...], list[_Seen]] = {}
        for seen in self._pending:
            kinds.setdefault(seen.kind, []).append(seen)
        self._pending, self._elements = [], 0
        for alike in kinds.values():
            largest = torch.cat([seen.largest for seen in alike])
            logits = torch.stack([torch.cat(parts) for parts in zip(*(seen.logits for seen in alike), strict=True)])
            slopes = torch.stack([torch.cat(parts) for parts in zip(*(seen.slopes for seen in alike), strict=True)])
            known = [seen.rows for seen in alike if seen.rows is not None]
            wanted = _asked(slopes, logits, torch.cat(known) if known else None)
            self._vanished = self._vanished + ((largest == 0) & wanted).sum()
            self.note_finite(logits.isfinite().all() & largest.isfinite().all())

    def add(self, other: Passes) -> None:
        """Count what another counted as well."""
        other._check()
        self.forward += other.forward
        self.backward += other.backward
        self.gradients += other.gradients
        self._vanished = self._vanished + other._vanished
        for finite in other._finite:
            self.note_finite(finite)

    def check_finite(self) -> None:
        """Refuse a model that gave NaN or infinity.

        Raises:
            PluginError: it did.
        """
        if not self.finite:
            raise PluginError("the model's output", expected="finite logits and gradients", got="NaN or infinity")


def _asked(slopes: Tensor, logits: Tensor, rows: Tensor | None) -> Tensor:
    """Of which images an attack asked a gradient, `(batch,)`: only such a gradient can vanish.

    It may ask nothing of an image, as where that fools already: then its loss does not depend on the logits. Nor
    does cross-entropy where the softmax is rounded to 1, but that is what is looked for.

    Args:
        slopes: gradient with respect to the logits, `(draws, batch, classes)`.
        logits: likewise.
        rows: labels, or labels and targets, `(batch, 2)`; None where they are not known, and doubt prevails.
    """
    rounded = logits.softmax(-1).amax(-1) == 1
    if rows is not None:
        predicted = logits.argmax(-1)
        rounded &= predicted == rows if rows.ndim == 1 else predicted != rows[:, 1]
    return ((slopes != 0).any(-1) | rounded).any(0)


def _is_batched(gradient: Tensor) -> bool:
    functorch = torch._C._functorch
    return functorch.is_functorch_wrapped_tensor(gradient) or functorch.is_legacy_batchedtensor(gradient)


class BackwardWatch:
    """Counts the backward passes of logits that others differentiate, and looks at what reaches the images.

    A gradient that torch.func takes for several vectors at once cannot be looked at, and is counted once.

    Args:
        passes: where it counts.
        x: the images that passed, which need a gradient.
        logits: their logits, `(batch, classes)`.
        rows: their labels, or labels and targets, `(batch, 2)`; None where they are not known.
    """

    def __init__(self, passes: Passes, x: Tensor, logits: Tensor, rows: Tensor | None) -> None:
        self._passes = passes
        self._logits = logits.detach()
        self._rows = rows if rows is not None and len(rows) == len(logits) else None
        self._slope: Tensor | None = None
        logits.register_hook(self._at_logits)  # type: ignore[no-untyped-call]
        x.register_hook(self._at_images)  # type: ignore[no-untyped-call]

    def _at_logits(self, gradient: Tensor) -> None:
        self._passes.backward += len(self._logits)
        self._slope = None if _is_batched(gradient) else gradient.detach()

    def _at_images(self, gradient: Tensor) -> None:
        if self._slope is None or _is_batched(gradient):
            return
        largest = gradient.detach().abs().flatten(1).amax(1)
        # Logits that are not finite were noted by the pass forward, which knows whether the images were.
        finite = self._logits.isfinite().all(1)
        largest = torch.where(finite, largest, 1.0)
        logits = torch.where(finite[:, None], self._logits, 0.0)
        self._passes.note_gradient(largest, [logits], [self._slope], self._rows)
