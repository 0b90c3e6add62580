"""`worst_case` against AutoAttack, on trained nets and on nets with masked gradients: cells paired by image.

About half an hour on one core.
"""

from __future__ import annotations

import functools
import sys

import pytest
import torch
from torch import Tensor, nn

import advbench
from advbench import Classifier, Threat
from advbench.data.datasets import limited
from advbench.keys import derive

RADII = {"linf": (0.05, 0.1, 0.2), "l2": (0.5, 1.0)}
IMAGES = 200


class Saturated(nn.Module):
    """Logits times 1,000: the softmax is 0 or 1 in float32, and its gradient is 0."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = 1000 * self.net(x)
        return logits


class Squashed(nn.Module):
    """Hyperbolic tangent of the logits, which is flat in float32 where they are large."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = (4 * self.net(x)).tanh()
        return logits


class Quantised(nn.Module):
    """Pixels rounded to 16 levels: the gradient is 0 everywhere."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net((15 * x).round() / 15)
        return logits


MASKS: dict[str, type[nn.Module] | None] = {
    "plain": None,
    "saturated": Saturated,
    "squashed": Squashed,
    "quantised": Quantised,
}


@functools.cache
def trained(name: str) -> nn.Module:
    data = advbench.load_dataset("digits").train
    net = advbench.build_architecture("small_cnn", data, derive(0, "init"))
    return advbench.get_defense(name, preset="digits").fit(net, data).module.eval()


@pytest.mark.slow
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("defense", ["erm", "pgd_at", "trades"])
def test_worst_case_leaves_no_more_right_than_autoattack(defense: str, mask: str) -> None:
    pytest.importorskip("pyautoattack")
    net, masked = trained(defense), MASKS[mask]
    clf = Classifier(masked(net) if masked else net).requires_grad_(False)
    x, y = limited(advbench.load_dataset("digits").test, IMAGES).batch(slice(None))
    assert advbench.evaluate(clf, x, y).accuracy > 0.8, f"{defense} has learnt nothing"
    more = []
    for norm, radii in RADII.items():
        for eps in radii:
            threat = Threat(norm, eps)  # type: ignore[arg-type]
            found = {
                name: advbench.craft(advbench.get_attack(name), clf, x, y, threat)
                for name in ("worst_case", "autoattack")
            }
            right = {name: clf(crafted.images).argmax(1) == y for name, crafted in found.items()}
            ours, theirs = (right[name].float().mean().item() for name in ("worst_case", "autoattack"))
            sys.stdout.write(f"{defense} {mask} {norm} {eps}: worst_case {ours:.3f}, autoattack {theirs:.3f}\n")
            more.append(ours - theirs)
    assert max(more) <= 1 / IMAGES + 1e-6
    assert torch.tensor(more).mean() <= 1e-6
