"""Examples that stop early against those crafted to the end, on digits and MNIST: cells paired by image.

About an hour on one core.
"""

from __future__ import annotations

import functools
import sys
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

import advbench
from advbench import Classifier, Threat
from advbench.data.datasets import limited
from advbench.keys import derive

RANDOM = ("bnn", "adv_bnn", "rse", "mc_dropout", "hierarchical_vi")
DETERMINISTIC = ("erm", "pgd_at", "fgsm_at", "wrm", "ifgsm_at")


class Setting(NamedTuple):
    """A data set with a net, the number of images of training and of test, and radii by norm.

    From scratch, or at the 0.3 of MNIST's preset, PGD training of the strided net ends at a constant: it begins with
    plain training, and takes `eps`.
    """

    net: str
    train: int | None
    test: int | None
    radii: dict[Any, tuple[float, ...]]
    eps: float | None = None


SETTINGS = {
    "digits": Setting("small_cnn", None, None, {"linf": (0.05, 0.1, 0.15), "l2": (0.25, 0.5, 1.0)}),
    "mnist": Setting("strided_cnn", 20_000, 500, {"linf": (0.1, 0.2, 0.3)}, eps=0.2),
}


@functools.cache
def trained(name: str, dataset: str, root: str | None) -> Classifier:
    setting = SETTINGS[dataset]
    data = limited(advbench.load_dataset(dataset, root).train, setting.train)
    net = advbench.build_architecture(setting.net, data, derive(0, "init"))
    params: dict[str, Any] = {}
    if setting.eps and name in ("pgd_at", "fgsm_at", "ifgsm_at"):
        params = {"eps": setting.eps}
        net = advbench.get_defense("erm", preset=dataset).fit(net, data).module.requires_grad_(True)
    clf = advbench.get_defense(name, preset=dataset, **params).fit(net, data).requires_grad_(False)
    assert advbench.evaluate(clf, *data.batch(slice(500))).accuracy > 0.7, f"{name} has learnt nothing"
    return clf


def expected(clf: Classifier, images: Tensor, labels: Tensor) -> NDArray[np.float64]:
    """The probability that each image is predicted right, over ten predictions of 20 fresh draws."""
    seeds = range(10 if clf.stochastic else 1)
    found = [advbench.evaluate(clf, images, labels, draws=20, seed=seed).ensemble_correct for seed in seeds]
    return np.mean(found, axis=0, dtype=np.float64)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", SETTINGS)
@pytest.mark.parametrize(
    ("attack", "params", "defenses"),
    [
        ("eot_pgd", {}, RANDOM),
        ("apgd", {"steps": 20}, RANDOM),
        ("pgd", {}, DETERMINISTIC),
        ("apgd", {}, DETERMINISTIC),
    ],
)
def test_early_stop_leaves_no_more_right(
    attack: str, params: dict[str, Any], defenses: tuple[str, ...], dataset: str, request: pytest.FixtureRequest
) -> None:
    setting, root = SETTINGS[dataset], request.getfixturevalue("mnist_root") if dataset == "mnist" else None
    x, y = limited(advbench.load_dataset(dataset, root).test, setting.test).batch(slice(None))
    rises, passes = [], []
    for name in defenses:
        clf = trained(name, dataset, root)
        for norm, radii in setting.radii.items():
            for eps in radii:
                made, threat = advbench.get_attack(attack, **params), Threat(norm, eps)
                whole, early = (advbench.craft(made, clf, x, y, threat, stop_early=stop) for stop in (False, True))
                before, after = (expected(clf, found.images, y) for found in (whole, early))
                rises.append(after - before)
                passes.append(early.forward_passes / whole.forward_passes)
                sys.stdout.write(f"{name} {norm} {eps}: {before.mean():.4f}, early {after.mean():.4f}, ")
                sys.stdout.write(f"passes {passes[-1]:.3f}\n")
    by_image = np.mean(rises, axis=0)  # an image is the same one in all cells
    high = by_image.mean() + 1.645 * by_image.std(ddof=1) / len(by_image) ** 0.5
    sys.stdout.write(f"{attack}, {dataset}: rise {by_image.mean():+.5f}, at most {high:+.5f}, ")
    sys.stdout.write(f"passes {np.mean(passes):.3f}\n")
    if defenses is RANDOM:
        assert high <= 0.005
    else:
        assert max(rise.mean() for rise in rises) <= 0.005
