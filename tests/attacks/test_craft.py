"""The harness: what goes in, what an attack may claim, and who judges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import advbench
from advbench.attacks.base import Attack, Threat
from advbench.errors import AdvbenchError, InputError, PluginError
from advbench.testing import small_data, small_net

X, Y = small_data().batch(slice(6))
LINF = Threat("linf", 0.1)


class Claiming(Attack):
    """Returns whatever it was given to return."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result

    def run(self, clf: Any, x: Tensor, goal: Any, threat: Threat, generator: torch.Generator) -> Tensor:
        result: Tensor = self.result(x) if callable(self.result) else self.result
        return result


class Constant(nn.Module):
    """The same logits for every image."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1) + 0 * x.flatten(1).sum(1, keepdim=True)


class Coin(nn.Module):
    """Right with probability q whatever the image, afresh at every call; its labels are all 0."""

    def __init__(self, q: float) -> None:
        super().__init__()
        self.q = nn.Parameter(torch.tensor(q))

    def forward(self, x: Tensor) -> Tensor:
        right = (torch.rand(len(x)) < self.q).float() + 0 * x.flatten(1).sum(1)
        return torch.stack([right, 1 - right], 1) * 10


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (
            lambda x: (x + 0.11).clamp(max=1),
            r"attack Claiming left the linf ball: expected a distance of at most eps 0\.1, got 0\.1",
        ),
        (lambda x: x + 1.0, r"attack Claiming left the box \[0, 1\]"),
        (lambda x: x - 2e-6 - x.min(), r"attack Claiming left the box"),
        (lambda x: x * torch.nan, "attack Claiming returned: expected finite images, got NaN"),
        (lambda x: x[:3], r"attack Claiming returned: expected torch.float32 \(6, 1, 6, 6\), got"),
        (lambda x: x.double(), "got torch.float64"),
        (None, "got NoneType"),
    ],
)
def test_a_false_claim_is_an_error_that_names_attack_and_distance(result: Any, message: str) -> None:
    with pytest.raises(PluginError, match=message) as error:
        Claiming(result)(small_net().eval(), X, Y, LINF)
    assert "\n" not in str(error.value)


def test_an_overshoot_within_the_tolerance_passes_unclipped() -> None:
    inside = 0.2 + 0.6 * X
    x_adv = Claiming(lambda x: x + 0.1 + 5e-7)(small_net().eval(), inside, Y, LINF)
    assert float((x_adv - inside).max()) > 0.1


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X * 255, Y, r"expected values in \[0, 1\], got \[.*\]; divide by 255"),
        (X - 1, Y, r"expected values in \[0, 1\]"),
        (X.masked_fill(X > 0.5, torch.nan), Y, r"expected values in \[0, 1\]"),
        ((X * 255).to(torch.uint8), Y, "expected float32 or float64"),
        (X.half(), Y, "expected float32 or float64"),
        (X.numpy(), Y, "got ndarray"),
        (X, Y.float(), r"expected int64 of shape \(6,\), got torch.float32"),
        (X, Y[:5], r"expected int64 of shape \(6,\), got torch.int64 \(5,\)"),
        (X, Y - 5, "classes 0 upward"),
        (X, Y.to("meta"), r"labels given to PGD: expected the images' device \(cpu\), got meta"),
    ],
)
def test_images_and_labels_that_cannot_be_attacked_are_refused(x: Any, y: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        advbench.get_attack("pgd")(small_net().eval(), x, y, LINF)
    assert "\n" not in str(error.value)


def test_labels_outside_the_classes_are_refused_when_judging() -> None:
    with pytest.raises(InputError, match=r"expected classes 0\.\.2, got 0\.\.7"):
        advbench.evaluate(small_net().eval(), X, torch.tensor([0, 1, 2, 0, 1, 7]))


@pytest.mark.parametrize("name", ["none", "fgsm", "pgd"])
def test_labels_outside_the_classes_are_refused_when_attacking(name: str) -> None:
    with pytest.raises(InputError, match=r"expected classes 0\.\.2, got 0\.\.7"):
        advbench.get_attack(name)(small_net().eval(), X, torch.tensor([0, 1, 2, 0, 1, 7]), LINF)


@pytest.mark.parametrize(("draws", "count", "message"), [(0, 6, "draws: expected at least 1"), (1, 0, "at least one")])
def test_nothing_to_judge_is_refused(draws: int, count: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        advbench.evaluate(small_net().eval(), X[:count], Y[:count], draws=draws)


@pytest.mark.parametrize("name", ["fgsm", "pgd", "eot_pgd"])
def test_a_model_that_returns_nan_is_named_not_the_attack(name: str) -> None:
    model = Constant(0.0, float("nan"), 1.0)
    with pytest.raises(PluginError, match="the model's output: expected finite logits and gradients"):
        advbench.get_attack(name)(model, X, Y, LINF)
    with pytest.raises(PluginError, match="the model's output: expected finite logits and gradients"):
        advbench.evaluate(model, X, Y)


def test_a_model_without_gradient_is_refused_in_one_line() -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(len(x), 3)

    with pytest.raises(PluginError, match="the classifier has no gradient"):
        advbench.get_attack("fgsm")(Flat(), X, Y, LINF)


@pytest.mark.parametrize(
    ("norm", "eps", "message"),
    [
        ("linf", -0.1, "finite number >= 0"),
        ("linf", 8, "did you mean 8/255"),
        ("l2", float("inf"), "finite number >= 0"),
        ("l2", float("nan"), "finite number >= 0"),
        ("l1", 0.1, "'linf' or 'l2'"),
        ("linf", "big", "finite number"),
    ],
)
def test_impossible_threats_are_refused(norm: Any, eps: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Threat(norm, eps)


def test_hyperparameters_are_checked_with_a_suggestion() -> None:
    with pytest.raises(InputError, match=r"unknown hyperparameter of PGD 'step'.*did you mean 'steps'\?"):
        advbench.get_attack("pgd", step=3)
    with pytest.raises(InputError, match="hyperparameter 'steps' of PGD: expected a value greater than"):
        advbench.get_attack("pgd", steps=0)
    with pytest.raises(InputError, match=r"unknown attack 'pgdd'.*did you mean 'pgd'\?"):
        advbench.get_attack("pgdd")
    with pytest.raises(InputError, match=r"unknown preset of AdvBNN 'papr'.*did you mean 'paper'\?"):
        advbench.get_defense("adv_bnn", preset="papr")


def test_a_norm_that_the_attack_lacks_is_refused() -> None:
    class LinfOnly(Claiming):
        norms = frozenset({"linf"})

    with pytest.raises(InputError, match="norm of attack LinfOnly: expected one of linf, got 'l2'"):
        LinfOnly(lambda x: x)(small_net().eval(), X, Y, Threat("l2", 0.1))


def test_an_empty_batch_is_returned() -> None:
    assert advbench.get_attack("pgd")(small_net().eval(), X[:0], Y[:0], LINF).shape == (0, 1, 6, 6)


@pytest.mark.parametrize("q", [0.99, 0.95, 0.9])
@pytest.mark.parametrize("name", ["fgsm", "pgd", "eot_pgd"])
def test_draws_that_attack_never_judge(q: float, name: str) -> None:
    """A model that is right with probability q whatever the image must not be reported as broken."""
    x, y = torch.rand((400, 1, 2, 2), generator=torch.Generator().manual_seed(0)), torch.zeros(400, dtype=torch.int64)
    params = {} if name == "fgsm" else {"restarts": 2, "steps": 5}
    x_adv = advbench.get_attack(name, **params)(Coin(q), x, y, LINF)
    predictions = advbench.evaluate(Coin(q), x_adv, y)
    assert abs(predictions.draw_accuracy - q) < 4 * np.sqrt(q * (1 - q) / (400 * 20))
    assert predictions.accuracy > 0.999


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("pgd", {"steps": 12}),
        ("eot_pgd", {"steps": 6, "samples": 2}),
        ("apgd", {"steps": 6}),
        ("square", {"queries": 40}),
        ("worst_case", {"attacks": ["pgd", "square"]}),
        ("transfer", {"attack": "pgd", "params": {"steps": 6}}),
    ],
)
@pytest.mark.parametrize("random", [False, True])
def test_progress_within_a_batch_rises_to_all_images(name: str, params: dict[str, Any], random: bool) -> None:
    net, seen = small_net().eval(), []
    clf = advbench.Classifier(net, advbench.models.posterior.GaussianPosterior(net, std=0.1) if random else None)
    attack = advbench.get_attack(name, **params)
    with_report = advbench.craft(attack, clf, X, Y, LINF, batch_size=4, report=seen.append)
    assert torch.equal(with_report.images, advbench.craft(attack, clf, X, Y, LINF, batch_size=4).images)
    steps = [each.step for each in seen]
    assert steps == sorted(steps)
    assert {each.total for each in seen} == {6}
    assert {4, 6} <= set(steps)
    assert clf.passes.watch is None
    if name in ("pgd", "eot_pgd"):  # whose cost is what they spend
        assert steps == [1, 2, 3, 4, 5, 6]


def test_attacking_and_judging_leave_the_sequence_of_draws_where_it_was() -> None:
    net = small_net().eval()
    clf = advbench.Classifier(net, advbench.models.posterior.GaussianPosterior(net, std=0.5)).requires_grad_(False)
    expected = clf.reseed(9).draws(X, 3)
    first = clf.reseed(9)(X)
    advbench.get_attack("pgd")(clf, X, Y, LINF)
    advbench.evaluate(clf, X, Y)
    assert torch.equal(torch.stack([first, clf(X), clf(X)]), expected)
    assert (clf.passes.forward, clf.passes.backward) == (6 * 6, 0)


def test_a_frozen_noisy_classifier_is_judged_at_its_draw_and_never_cut() -> None:
    noisy = advbench.Classifier(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 3)).train(), noise=True)
    frozen = noisy.frozen(7)
    judged = advbench.evaluate(frozen, X, Y)
    np.testing.assert_allclose(judged.mean_probs, frozen(X).detach().softmax(1).numpy(), rtol=1e-6)
    whole = noisy.reseed(1)(X)
    noisy.chunk = 2
    assert torch.equal(noisy.reseed(1)(X), whole)


@pytest.mark.parametrize("x", [X.double(), X.repeat(1, 3, 1, 1), X[..., :4]], ids=["dtype", "channels", "size"])
def test_images_that_the_model_cannot_take_are_refused_in_one_line(x: Tensor) -> None:
    for refused in (
        lambda: advbench.evaluate(small_net().eval(), x, Y),
        lambda: advbench.get_attack("pgd")(small_net().eval(), x, Y, LINF),
    ):
        with pytest.raises(InputError, match="the model cannot be applied to the images: expected") as error:
            refused()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("move", [lambda net: net.double(), lambda net: net.to("meta")], ids=["dtype", "device"])
def test_a_model_of_another_dtype_or_device_is_refused_in_one_line(move: Any) -> None:
    with pytest.raises(InputError, match=r"cannot be applied to the images: .*, got torch.float32 .* on cpu") as error:
        advbench.get_attack("pgd")(move(small_net().eval()), X, Y, LINF)
    assert "\n" not in str(error.value)


def test_a_threat_must_be_one() -> None:
    with pytest.raises(InputError, match=r"threat given to PGD: expected an advbench\.Threat, got float"):
        advbench.get_attack("pgd")(small_net().eval(), X, Y, 0.1)


def test_uint8_images_are_not_judged_as_if_they_were_in_the_unit_range() -> None:
    with pytest.raises(InputError, match="images to evaluate: expected float32 or float64"):
        advbench.evaluate(small_net().eval(), (X * 255).byte(), Y)


def test_judging_is_reproducible_and_leaves_the_random_state_alone() -> None:
    model = Coin(0.7)
    state = torch.get_rng_state()
    first = advbench.evaluate(model, X, torch.zeros(6, dtype=torch.int64), seed=1)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(123)
    again = advbench.evaluate(model, X, torch.zeros(6, dtype=torch.int64), seed=1)
    other = advbench.evaluate(model, X, torch.zeros(6, dtype=torch.int64), seed=2)
    assert (first.correct == again.correct).all()
    assert not (first.correct == other.correct).all()


def test_a_draw_judges_all_batches_with_the_same_weights() -> None:
    net = small_net().eval()
    clf = advbench.Classifier(net, advbench.models.posterior.GaussianPosterior(net, std=0.5)).requires_grad_(False)
    one = advbench.evaluate(clf, X, Y, draws=4, batch_size=2)
    whole = advbench.evaluate(clf, X, Y, draws=4, batch_size=6)
    assert (one.correct == whole.correct).all()
    frozen = [clf.frozen(advbench.keys.derive(0, "judge", k)) for k in range(4)]
    expected = np.stack([(f(X).argmax(1) == Y).numpy() for f in frozen])
    assert (one.correct == expected).all()


def test_errors_survive_the_way_between_processes() -> None:
    import pickle

    error = InputError("eps", expected="a number", got="x", remedy="give one")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == "eps: expected a number, got x; give one"
    assert isinstance(again, AdvbenchError)
