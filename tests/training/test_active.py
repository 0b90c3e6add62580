"""Active learning: which images are chosen, and that a study goes on where it stopped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import advbench
from advbench.data.base import Data
from advbench.errors import InputError
from advbench.evaluation import Interval, score
from advbench.evaluation.evaluate import evaluate
from advbench.models import Classifier, SamplePosterior
from advbench.testing import small_data, small_net
from advbench.training import ACQUISITIONS, Defense, Params, Round, TrainContext, active_learning, learning_curve


def line(count: int = 41) -> Data:
    """Images of one pixel from 0 to 1; the class is whether it is bright."""
    images = torch.linspace(0, 1, count).view(-1, 1, 1, 1)
    return Data(images, (images.flatten() > 0.5).long(), 2)


class Slopes(nn.Module):
    """Logits 0 and weight (x - 1/2): surest where the pixel is black or white."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([5.0]))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, 1, 1, 1)` to `(batch, 2)`."""
        slope = self.weight * (x.flatten(1) - 0.5)
        return torch.cat([torch.zeros_like(slope), slope], 1)


class Known(Defense):
    """A method that trains nothing: members of fixed weights."""

    class Params(Params):
        """The weights."""

        weights: tuple[float, ...] = (5.0,)

    version = "1"
    params: Params

    def fit(self, module: nn.Module, data: Data, context: TrainContext | None = None) -> Classifier:
        """The members."""
        return Classifier(module, SamplePosterior(module, torch.tensor(self.params.weights)[:, None]))


def chosen(acquisition: str, *weights: float) -> list[float]:
    """The pixels of the four images that a known classifier chooses."""
    pool = line()
    found = active_learning(
        Known(weights=weights), lambda _: Slopes(), pool, pool, acquisition, rounds=2, batch=4, per_class=1
    )
    first, second = (each.labelled for each in found)
    assert second[:2] == first
    assert len(set(second)) == 6
    return pool.images.flatten()[list(second[2:])].tolist()


@pytest.mark.filterwarnings("ignore:.*order of the classes:advbench.errors.ModelWarning")  # probabilities tie here
@pytest.mark.parametrize("acquisition", ["entropy", "least_confidence"])
def test_the_images_nearest_to_the_boundary_are_chosen(acquisition: str) -> None:
    assert max(abs(pixel - 0.5) for pixel in chosen(acquisition, 5.0)) <= 0.08


@pytest.mark.filterwarnings("ignore:.*order of the classes:advbench.errors.ModelWarning")  # probabilities tie here
@pytest.mark.parametrize("acquisition", ["bald", "model_variance", "variation_ratio"])
def test_the_images_on_which_members_disagree_are_chosen(acquisition: str) -> None:
    """At the boundary all members say one half: nothing is to be learnt of the weights there."""
    pixels = chosen(acquisition, -20.0, 20.0)
    if acquisition != "variation_ratio":  # which is one half everywhere else
        assert min(abs(pixel - 0.5) for pixel in pixels) > 0.35
    assert min(abs(pixel - 0.5) for pixel in pixels) > 0


def test_first_images_are_as_many_of_each_class_and_random_ones_follow_from_the_seed() -> None:
    pool = small_data()
    common: dict[str, Any] = {"rounds": 3, "batch": 5, "per_class": 3}
    defense = advbench.get_defense("erm", stages=(1,), batch_size=64)
    runs = [
        active_learning(defense, lambda _: small_net(), pool, pool, "random", context=TrainContext(seed=seed), **common)
        for seed in (0, 0, 1)
    ]
    assert runs[0] == runs[1]
    assert runs[0][-1].labelled != runs[2][-1].labelled
    for run in runs:
        assert torch.bincount(pool.labels[list(run[0].labelled)]).tolist() == [3, 3, 3]
        assert [len(set(each.labelled)) for each in run] == [9, 14, 19]


@pytest.mark.parametrize("acquisition", ["bald", "random"])
def test_a_study_goes_on_from_the_rounds_that_it_kept(acquisition: str) -> None:
    pool = small_data()
    defense = advbench.get_defense("bnn", stages=(2,), batch_size=64)
    common: dict[str, Any] = {"rounds": 4, "batch": 2, "per_class": 1, "draws": 3, "context": TrainContext(seed=5)}
    kept: list[Round] = []
    whole = active_learning(defense, lambda _: small_net(), pool, pool, acquisition, report=kept.append, **common)
    assert kept == whole
    for count in range(4):
        again = active_learning(defense, lambda _: small_net(), pool, pool, acquisition, done=whole[:count], **common)
        assert again == whole


def test_each_round_trains_a_new_net_on_the_labelled_images_alone() -> None:
    pool, seen = small_data(), []

    class Spy(type(advbench.get_defense("erm"))):  # type: ignore[misc]
        def fit(self, module: nn.Module, data: Data, context: TrainContext | None = None) -> Classifier:
            seen.append((module, data, context))
            return super().fit(module, data, context)

    seeds: list[int] = []

    def net(seed: int) -> nn.Module:
        seeds.append(seed)
        return small_net()

    found = active_learning(Spy(stages=(1,), batch_size=64), net, pool, pool, rounds=2, batch=4, per_class=1, draws=2)
    assert len(set(seeds)) == len(seen) == 2
    for each, (_, data, context) in zip(found, seen, strict=True):
        assert torch.equal(data.images, pool.images[list(each.labelled)])
        assert torch.equal(data.labels, pool.labels[list(each.labelled)])
        assert context is not None
    assert seen[0][2].seed != seen[1][2].seed
    clf = super(Spy, Spy(stages=(1,), batch_size=64)).fit(small_net(), seen[0][1], seen[0][2])
    rest = np.setdiff1d(np.arange(len(pool)), found[0].labelled)
    scores = score(evaluate(clf, pool.images[rest], pool.labels[rest], 2), ACQUISITIONS["entropy"])
    assert set(found[1].labelled[3:]) == set(rest[np.argsort(-scores)[:4]].tolist())


BAD: list[tuple[Mapping[str, Any], str]] = [
    ({"acquisition": "entropi"}, r"unknown acquisition function 'entropi': .*did you mean 'entropy'"),
    ({"rounds": 30}, "pool: expected at least 2 images of each class, and 296 in all, got 16 and 48"),
    ({"per_class": 17}, "pool: expected at least 17 images of each class"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_what_cannot_be_done_is_one_line(changes: Mapping[str, Any], message: str) -> None:
    pool = small_data()
    with pytest.raises(InputError, match=message):
        active_learning(advbench.get_defense("erm"), lambda _: small_net(), pool, pool, **changes)


def test_a_curve_is_the_mean_over_seeds_with_students_interval() -> None:
    runs = [[Round((0, 1), accuracy, Interval(0.1, 0.2))] for accuracy in (0.5, 0.6, 0.7)]
    (point,) = learning_curve(runs)
    half = 4.302653 * 0.1 / 3**0.5
    assert point.labelled == 2
    assert (point.accuracy, *point.interval) == pytest.approx((0.6, 0.6 - half, 0.6 + half), abs=1e-6)
    assert learning_curve(runs[:1])[0].interval == Interval(0.1, 0.2)
