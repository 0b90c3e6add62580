"""What is measured while a classifier is trained, and that measuring leaves no trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

import advbench
from advbench.errors import InputError
from advbench.evaluation.evaluate import evaluate
from advbench.models import Classifier, GaussianPosterior, SamplePosterior
from advbench.registry import registry
from advbench.testing import same_weights, small_data, small_net
from advbench.training import Defense, ErmLoss, TrainContext, errors_on, history
from advbench.training.history import check_watched, watches

METHODS: dict[str, dict[str, Any]] = {
    "erm": {},
    "mc_dropout": {},
    "adversarial_sampling": {"steps": 1},
    "adv_bnn": {"steps": 1},
    "sgld": {"burn_in": 4, "interval": 1, "samples": 3},
    "bal": {"chains": 2, "samples": 2, "image_steps": 1, "init_from": "erm"},
    "apd": {"burn_in": 2, "interval": 1, "samples": 4, "gan_steps": 6, "gan_batch_size": 3, "hidden": (4,)},
}


def net() -> nn.Module:
    """With what a passing image might change: batch norm's statistics, dropout's random state."""
    small = small_net()
    return nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.1), *small)


@pytest.mark.parametrize("name", METHODS)
def test_measuring_changes_no_bit_of_the_training(name: str) -> None:
    data, seen = small_data(), []

    def measure(clf: Classifier) -> Mapping[str, float]:
        torch.rand(3)
        clf(data.images[:4])
        seen.append(evaluate(clf, data.images, data.labels, 3).accuracy)
        return {"accuracy": seen[-1]}

    defense = advbench.get_defense(name, stages=(2, 1), batch_size=16, **METHODS[name])
    plain = defense.fit(net(), data, TrainContext(seed=2))
    clf, moments = history(defense, net(), data, measure, TrainContext(seed=2), every=2)
    assert same_weights(plain, clf)
    steps = 9 + (6 if name == "apd" else 0)
    assert [moment.step for moment in moments] == [*range(2, steps, 2), steps]
    assert [moment.values["accuracy"] for moment in moments] == seen
    assert seen[-1] == evaluate(clf, data.images, data.labels, 3).accuracy


def test_a_chain_shows_the_samples_that_it_has_so_far() -> None:
    counts = []

    def measure(clf: Classifier) -> Mapping[str, float]:
        assert isinstance(clf.posterior, SamplePosterior)
        counts.append(len(clf.posterior.samples))
        return {}

    defense = advbench.get_defense("sgld", stages=(9,), batch_size=48, burn_in=2, interval=2, samples=3, chains=1)
    history(defense, small_net(), small_data(), measure)
    assert counts == [1, 1, 1, 1, 1, 2, 2, 3, 3]  # the chain itself until there is a sample


def test_errors_after_each_epoch_are_those_of_a_training_that_ends_there() -> None:
    data = small_data()
    measure = errors_on(data, draws=3)
    _, moments = history(advbench.get_defense("bnn", stages=(3,), batch_size=16), small_net(), data, measure)
    assert [moment.step for moment in moments] == [3, 6, 9]
    for epochs, moment in enumerate(moments, 1):
        stopped = advbench.get_defense("bnn", stages=(epochs,), batch_size=16).fit(small_net(), data)
        found = evaluate(stopped, data.images, data.labels, 3)
        errors = 1 - found.draw_accuracies
        expected = {"error": 1 - found.accuracy, "draw_error": errors.mean()}
        expected |= {"draw_error_min": errors.min(), "draw_error_max": errors.max()}
        assert moment.values == pytest.approx(expected)


def test_a_method_without_steps_is_measured_at_the_end() -> None:
    data = small_data()
    defense = advbench.get_defense("deep_ensemble", members=2, params={"stages": [1], "batch_size": 16})
    clf, moments = history(defense, small_net(), data, errors_on(data))
    assert len(moments) == 1
    assert moments[0].values["error"] == 1 - evaluate(clf, data.images, data.labels).accuracy


class Halved(ErmLoss):
    """A fit that changes the trained classifier."""

    def fit(self, module, data, context=None):
        clf = super().fit(module, data, context)
        return Classifier(clf.module, GaussianPosterior(clf.module, 0.1))


class Own(Defense):
    """A fit that runs another method without overriding it."""

    def fit(self, module, data, context=None):
        clf = advbench.get_defense("erm", stages=(1,), batch_size=16).fit(module, data, context)
        return Classifier(clf.module, GaussianPosterior(clf.module, 0.1))


def test_no_other_classifier_is_measured_than_the_one_that_fit_returns() -> None:
    data = small_data()
    with pytest.raises(InputError, match="--history of defense 'Halved': expected a fit that shows the classifier"):
        history(Halved(stages=(1,), batch_size=16), small_net(), data, errors_on(data))
    clf, moments = history(Own(), small_net(), data, errors_on(data, draws=3))
    assert [moment.step for moment in moments] == [0]  # the end alone
    assert moments[0].values["error"] == 1 - evaluate(clf, data.images, data.labels, 3).accuracy
    for name in ("erm", "bnn", "sgld", "apd", "bal", "active", "hierarchical_vi"):
        assert watches(registry().load("defense", name))
    for name in ("rse", "deep_ensemble", "pretrained"):
        check_watched(registry().load("defense", name), name)
    assert watches(type("Stated", (Halved,), {"fit": Halved.fit, "watches": True}))
