"""A mixture of Gaussians in place of a chain's samples, and the toy data of APD."""

from __future__ import annotations

from typing import Any

import torch

import advbench
from advbench.data.datasets import load_dataset
from advbench.data.ood import ood_images
from advbench.evaluation import uncertainty
from advbench.evaluation.evaluate import evaluate, evaluate_ood
from advbench.models.nets import build


def test_em_finds_a_known_mixture() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(4000, generator=generator) < 0.3
    noise = torch.randn((4000, 3), generator=generator)
    centres, stds = torch.tensor([[-2.0, 0.0, 1.0], [2.0, 1.0, 1.0]]), torch.tensor([0.1, 0.5])
    samples = torch.where(first[:, None], centres[0] + stds[0] * noise, centres[1] + stds[1] * noise)
    mixture: Any = advbench.get_defense("sgld_mixture", components=2, draws=20_000)
    drawn = mixture.draws(samples, 1)
    left = drawn[:, 0] < -1
    assert abs(float(left.float().mean()) - float(first.float().mean())) < 0.015
    for chosen, centre, std in ((left, centres[0], stds[0]), (~left, centres[1], stds[1])):
        torch.testing.assert_close(drawn[chosen].mean(0), centre, atol=0.03, rtol=0)
        torch.testing.assert_close(drawn[chosen].std(0), std.expand(3), atol=0.03, rtol=0)
    # One component is a factorised Gaussian: the mean and deviation of all samples, and no correlation.
    single: Any = advbench.get_defense("sgld_mixture", components=1, draws=20_000)
    alone = single.draws(samples, 1)
    torch.testing.assert_close(alone.mean(0), samples.mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(alone.std(0), samples.std(0), atol=0.05, rtol=0)
    assert float(torch.corrcoef(samples.T)[0, 1]) > 0.5
    assert abs(float(torch.corrcoef(alone.T)[0, 1])) < 0.03


def test_away_from_the_toy_points_a_chain_is_less_sure_than_a_single_net() -> None:
    """APD Figure 2: both separate the clusters; the chain's uncertainty rises over the rest of the square."""
    toy = load_dataset("toy2d")
    assert toy.train.shape == (2, 1, 1)
    assert len(toy.train) == len(toy.validation) == 20
    x, y = toy.test.batch(slice(None))
    square = ood_images("uniform", None, 500, toy.test.shape, 1.0)
    assert 0 <= float(square.min()) < float(square.max()) <= 1
    module = build("fcnn", toy.train, 0, {"hidden": (10, 10)})
    common: dict[str, Any] = {"batch_size": 20, "lr": 0.05, "weight_decay": 0.001, "stages": (1500,)}
    entropies = {}
    for name, params in (("erm", {"optimizer": "sgd", "momentum": 0.0}), ("sgld", {"samples": 100})):
        clf = advbench.get_defense(name, **common, **params).fit(module, toy.train)
        assert evaluate(clf, x, y, 50).accuracy == 1
        entropies[name] = uncertainty(evaluate_ood(clf, square, 50)).total
    assert entropies["sgld"].mean() > 1.5 * entropies["erm"].mean()
