"""`worst_case` against AutoAttack, on trained nets, on nets with masked gradients and on random defenses.

One of the fifteen cases took 205 s on a shared core.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import pytest
from torch import Tensor, nn

import advbench
from advbench import Classifier, Threat
from advbench.attacks import Norm
from advbench.data.datasets import limited
from advbench.keys import derive

Change = Callable[[Tensor], Tensor]

RADII: dict[Norm, tuple[float, ...]] = {"linf": (0.05, 0.1, 0.2), "l2": (0.5, 1.0)}
IMAGES = 200


class Masked(nn.Module):
    """A net between functions of its images and of its logits that hide its gradient.

    They hardly change its predictions, but for logits that tie once they are squashed: an argmax decides those.
    """

    def __init__(self, net: nn.Module, before: Change, after: Change) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.net(self.before(x)))


def same(values: Tensor) -> Tensor:
    return values


MASKS: dict[str, tuple[Change, Change]] = {
    "plain": (same, same),
    "saturated": (same, lambda logits: 1000 * logits),  # the softmax is 0 or 1 in float32
    "squashed": (same, lambda logits: (4 * logits).tanh()),  # flat in float32 where logits are large
    "rounded": (same, lambda logits: (2 * logits).round() / 2),  # the gradient is 0 everywhere, and logits tie
    "quantised": (lambda x: (15 * x).round() / 15, same),  # the gradient is 0 everywhere
}


@functools.cache
def trained(name: str) -> Classifier:
    data = advbench.load_dataset("digits").train
    net = advbench.build_architecture("small_cnn", data, derive(0, "init"))
    preset = None if name == "deep_ensemble" else "digits"
    return advbench.get_defense(name, preset=preset).fit(net, data)


def compared(clf: Classifier, what: str) -> list[float]:
    """Accuracy under `worst_case` minus that under AutoAttack at each radius, both over the same fresh draws."""
    x, y = limited(advbench.load_dataset("digits").test, IMAGES).batch(slice(None))
    assert advbench.evaluate(clf, x, y).accuracy > 0.5, f"{what} has learnt nothing"
    more = []
    for norm, radii in RADII.items():
        for eps in radii:
            found = {
                name: advbench.craft(advbench.get_attack(name), clf, x, y, Threat(norm, eps))
                for name in ("worst_case", "autoattack")
            }
            right = {name: advbench.evaluate(clf, crafted.images, y).accuracy for name, crafted in found.items()}
            passes = {name: crafted.forward_passes for name, crafted in found.items()}
            shown = ", ".join(f"{name} {right[name]:.3f} at {passes[name]:.0f} passes" for name in found)
            sys.stdout.write(f"{what} {norm} {eps}: {shown}\n")
            sys.stdout.flush()
            more.append(right["worst_case"] - right["autoattack"])
    return more


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*order of the classes:advbench.errors.ModelWarning")
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("defense", ["erm", "pgd_at", "trades"])
def test_worst_case_leaves_no_more_right_than_autoattack(defense: str, mask: str) -> None:
    pytest.importorskip("pyautoattack")
    clf = Classifier(Masked(trained(defense).module.eval(), *MASKS[mask])).requires_grad_(False)
    more = compared(clf, f"{defense} {mask}")
    allowed = 2 if mask in ("squashed", "rounded") else 1  # which of several ties an attack meets is luck
    assert max(more) <= allowed / IMAGES + 1e-6
    assert sum(more) <= 1e-6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*order of the classes:advbench.errors.ModelWarning")
@pytest.mark.parametrize("defense", ["adv_bnn", "bnn", "deep_ensemble", "hierarchical_vi", "mc_dropout", "rse", "sgld"])
def test_worst_case_leaves_no_more_right_of_a_random_defense(defense: str) -> None:
    pytest.importorskip("pyautoattack")
    more = compared(trained(defense).requires_grad_(False), defense)
    assert max(more) <= 3 / IMAGES + 1e-6
    assert sum(more) <= 1e-6
