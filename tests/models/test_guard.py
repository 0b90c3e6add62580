"""Models that work in place, draw by themselves, are in train mode or return probabilities."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import advbench
from advbench.attacks.base import Threat
from advbench.attacks.losses import cross_entropy
from advbench.errors import InputError, ModelWarning, PluginError
from advbench.models.classifier import Classifier
from advbench.models.gradient_watch import _ELEMENTS
from advbench.models.guard import check_trained, opened
from advbench.models.noise import DropoutNoise, GaussianNoise
from advbench.models.posterior import GaussianPosterior, SamplePosterior
from advbench.testing import InPlace, small_data, small_net

EPS = Threat("linf", 0.1)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return small_data().batch(slice(24))


class Wrapped(nn.Module):
    """A net whose logits go through a function."""

    def __init__(self, function: Callable[[Tensor], Tensor], net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = (net or small_net()).eval()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.net(x))


# in place


@pytest.mark.parametrize("first", [nn.ReLU(inplace=True), nn.Hardtanh(0.1, 0.6, inplace=True)])
def test_models_that_begin_in_place_are_evaluated_as_their_twins(
    batch: tuple[Tensor, Tensor], first: nn.Module
) -> None:
    x, y = batch
    given, net = x.clone(), small_net().eval()
    twin = type(first)(*([0.1, 0.6] if isinstance(first, nn.Hardtanh) else []))
    found = advbench.evaluate(nn.Sequential(first, net), x, y)
    assert torch.equal(x, given)
    assert found.to_bytes() == advbench.evaluate(nn.Sequential(twin, net), x, y).to_bytes()


def test_every_draw_of_a_model_that_normalises_in_place_sees_the_images(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    net = small_net().eval()
    found = advbench.evaluate(InPlace(net), x, y, draws=20)
    assert found.to_bytes() == advbench.evaluate(InPlace(net, in_place=False), x, y, draws=20).to_bytes()


# random numbers


def drawn_by(source: str) -> Callable[[Tensor], Tensor]:
    own = np.random.default_rng(0)

    def noisy(logits: Tensor) -> Tensor:
        if source == "torch":
            return logits + torch.randn_like(logits)
        if source == "numpy":
            return logits + torch.tensor(np.random.normal(size=logits.shape), dtype=logits.dtype)
        if source == "python":
            return logits + torch.tensor([[random.gauss(0, 1) for _ in row] for row in logits])
        return logits + torch.tensor(own.normal(size=logits.shape), dtype=logits.dtype)

    return noisy


def states() -> tuple[object, ...]:
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index, union-attr]


@pytest.mark.parametrize("source", ["torch", "numpy", "python"])
def test_a_seed_reaches_every_global_generator(batch: tuple[Tensor, Tensor], source: str) -> None:
    x, y = batch
    model = Wrapped(drawn_by(source))
    before = states()
    first = advbench.evaluate(model, x, y, draws=3, seed=1)
    assert states() == before
    random.random()
    np.random.random()
    assert advbench.evaluate(model, x, y, draws=3, seed=1).to_bytes() == first.to_bytes()
    assert advbench.evaluate(model, x, y, draws=3, seed=2).to_bytes() != first.to_bytes()
    clf = Classifier(model, noise=True)
    assert torch.equal(clf.at(clf.draw(5), x), clf.at(clf.draw(5), x)), "one draw is one draw"
    assert not torch.equal(clf.at(clf.draw(5), x), clf.at(clf.draw(6), x))


def test_a_generator_of_the_models_own_is_found_out(batch: tuple[Tensor, Tensor]) -> None:
    model = Wrapped(drawn_by("own"))
    with pytest.warns(ModelWarning, match="generator of its own"):
        assert "unseeded" in advbench.evaluate(model, *batch, draws=2).flags
    with pytest.warns(ModelWarning, match="generator of its own"):
        advbench.get_attack("fgsm")(model, *batch, EPS)


class Expanded(nn.Module):
    """A linear layer that takes its weights once, when it is put into evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 36, generator=torch.Generator().manual_seed(0)))
        self.taken: Tensor | None = None

    def train(self, mode: bool = True) -> Expanded:
        self.taken = None if mode else self.weight.detach().clone()
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ (self.weight if self.taken is None else self.taken).T


class Idle(nn.Module):
    """A net with a parameter that nothing depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()
        self.idle = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits


@pytest.mark.parametrize("name", ["bnn", "adv_bnn", "sgld"])
def test_trainings_refuse_weights_that_draws_do_not_reach(name: str) -> None:
    params = {"stages": (2,), "batch_size": 16} | ({"burn_in": 1, "interval": 1} if name == "sgld" else {})
    defense = advbench.get_defense(name, **params)
    with pytest.raises(PluginError, match=r"draws that differ, because it counts as random, got 24 equal"):
        defense.fit(Expanded(), small_data())
    with pytest.raises(PluginError, match=r"got idle without effect"):
        defense.fit(Idle(), small_data())


def test_noise_that_never_reaches_the_logits_is_refused() -> None:
    net = small_net().eval()
    with pytest.raises(PluginError, match="24 equal ones"):
        check_trained("mine", Classifier(Wrapped(lambda x: x, net), noise=True), small_data())


@pytest.mark.parametrize(("name", "params"), [("rse", {"first_std": 0, "inner_std": 0}), ("mc_dropout", {"rate": 0})])
def test_randomness_that_is_switched_off_makes_a_deterministic_classifier(name: str, params: dict[str, float]) -> None:
    defense = advbench.get_defense(name, stages=(1,), batch_size=16, **params)
    assert not defense.fit(small_net(), small_data()).stochastic


def test_equal_samples_are_a_deterministic_classifier() -> None:
    net = small_net()
    assert not Classifier(net, SamplePosterior(net)).stochastic
    assert not Classifier(net, SamplePosterior(net, torch.zeros(2, 1))).stochastic
    assert Classifier(net, SamplePosterior(net, torch.eye(2))).stochastic


def test_equal_draws_are_flagged(batch: tuple[Tensor, Tensor]) -> None:
    net = Expanded().eval()
    clf = Classifier(net, GaussianPosterior(net))
    with pytest.warns(ModelWarning, match="all draws are equal"):
        assert advbench.evaluate(clf, *batch, draws=3).flags == ("equal_draws",)
    with warnings.catch_warnings(action="error"):
        assert advbench.evaluate(small_net().eval(), *batch, draws=3).flags == (), "a plain module may be deterministic"


class Squashed(nn.Module):
    """A net whose logits saturate."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.net, self.scale = small_net(), scale

    def forward(self, x: Tensor) -> Tensor:
        return (self.scale * self.net(x)).tanh()


def test_ties_are_flagged(batch: tuple[Tensor, Tensor]) -> None:
    with pytest.warns(ModelWarning, match="depend on the order of the classes"):
        found = advbench.evaluate(Classifier(Squashed(1e4).eval()), *batch)
    assert found.flags == ("ties",)
    assert found.tied > 0.2
    with warnings.catch_warnings(action="error"):
        found = advbench.evaluate(Classifier(Squashed(1.0).eval()), *batch)
    assert (found.flags, found.tied) == ((), 0.0)


# modes


def test_train_mode_moves_no_statistics_and_is_said(batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    net = small_net().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.warns(ModelWarning, match=r"model\.eval\(\)"):
        assert advbench.evaluate(net, x, y).flags == ("train_mode",)
    with pytest.warns(ModelWarning, match="batch norm is in train mode"):
        advbench.get_attack("pgd", steps=2)(net, x, y, EPS)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert net.training
    net.eval()[3].train()
    with warnings.catch_warnings(action="error"):
        assert advbench.evaluate(net, x, y).flags == (), "dropout that is left on is the defense's own affair"


# outputs


@pytest.mark.parametrize("function", [lambda z: z.softmax(1), lambda z: z.log_softmax(1), torch.sigmoid])
def test_probabilities_in_place_of_logits_are_flagged(
    batch: tuple[Tensor, Tensor], function: Callable[[Tensor], Tensor]
) -> None:
    model = Wrapped(function)
    with pytest.warns(ModelWarning, match="probabilities in place of logits"):
        assert advbench.evaluate(model, *batch, draws=2).flags == ("probabilities",)
    with pytest.warns(ModelWarning, match="probabilities in place of logits"):
        advbench.get_attack("fgsm")(model, *batch, EPS)


@pytest.mark.parametrize("function", [lambda z: z, lambda z: z * 0, lambda z: -z.abs(), lambda z: 5 * z])
def test_logits_are_not(batch: tuple[Tensor, Tensor], function: Callable[[Tensor], Tensor]) -> None:
    with warnings.catch_warnings(action="error"):
        assert opened(Wrapped(function), batch[0]).oddities == ()


def fails_with(error: Exception) -> Callable[[Tensor], Tensor]:
    def fail(logits: Tensor) -> Tensor:
        raise error

    return fail


def growing() -> Callable[[Tensor], Tensor]:
    sizes: Iterator[int] = iter(range(1, 10_000))
    return lambda z: F.pad(z, (0, next(sizes)))


UNUSABLE = {
    "keys": (fails_with(KeyError("head")), "the model raised KeyError: got 'head'"),
    "attribute": (fails_with(AttributeError("no gelu")), "the model raised AttributeError: got no gelu"),
    "silent": (fails_with(AssertionError()), "the model raised AssertionError: got no message"),
    "integers": (lambda z: z.argsort(1), r"floating-point logits of shape \(24, classes\) on cpu, got torch.int64"),
    "complex": (lambda z: z.to(torch.complex64), "floating-point logits .* got torch.complex64"),
    "sparse": (lambda z: z.to_sparse(), "got torch.float32 sparse_coo"),
    "meta": (lambda z: z.to("meta"), "on cpu, got .* on meta"),
    "pair": (lambda z: (z, z.sum()), "got tuple; wrap the module so that it returns the logits alone"),
    "growing": (growing(), r"shape \(\d+, \d+\) on cpu, got"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_models_that_cannot_be_used_are_named_in_one_line(batch: tuple[Tensor, Tensor], name: str) -> None:
    function, message = UNUSABLE[name]
    model = Wrapped(function)  # type: ignore[arg-type]
    with pytest.raises(PluginError, match=message):
        advbench.evaluate(model, *batch, draws=2)
    with pytest.raises(PluginError, match="model"):
        advbench.get_attack("pgd", steps=2)(model, *batch, EPS)


def test_the_models_own_error_is_the_cause(batch: tuple[Tensor, Tensor]) -> None:
    error = KeyError("head")
    with pytest.raises(PluginError) as caught:
        advbench.evaluate(Wrapped(fails_with(error)), *batch)
    assert caught.value.__cause__ is error


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_an_error_of_the_backward_pass_is_the_models(batch: tuple[Tensor, Tensor]) -> None:
    class Reentrant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = checkpoint(self.net, x, use_reentrant=True)
            return logits

    with pytest.raises(PluginError, match=r"the model raised RuntimeError: got .*[Cc]heckpoint") as caught:
        advbench.get_attack("pgd", steps=1)(Reentrant().eval(), *batch, EPS)
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda net: nn.Sequential(nn.DataParallel(net))])
def test_replicas_take_no_drawn_weights(batch: tuple[Tensor, Tensor], wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = wrap(small_net().eval())
    with pytest.raises(InputError, match=r"a gaussian posterior can pass weights to, got nn\.DataParallel;"):
        Classifier(model, GaussianPosterior(model))
    assert len(advbench.evaluate(Classifier(model), *batch).mean_probs) == len(batch[0])


def test_attacks_in_inference_mode_blame_the_caller(batch: tuple[Tensor, Tensor]) -> None:
    with torch.inference_mode(), pytest.raises(InputError, match="PGD called in inference mode"):
        advbench.get_attack("pgd")(small_net().eval(), *batch, EPS)


# noise in pixels


def test_the_first_noise_is_in_pixels_whatever_the_normalisation() -> None:
    scale = nn.Module()
    scale.forward = lambda x: x * 20  # type: ignore[method-assign]
    first = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(first.weight)
    net = nn.Sequential(scale, first, nn.Flatten())
    clf = Classifier(net, noise=GaussianNoise(0.2, 0.0)).requires_grad_(False)
    x = torch.full((200, 1, 6, 6), 0.5)
    assert float((clf(x) / 20 - 0.5).std()) == pytest.approx(0.2, rel=0.05)


def test_dropout_noise_acts_at_a_rate_above_zero() -> None:
    assert DropoutNoise(0.1).acts
    assert not DropoutNoise(0.0).acts


# state, shared memory, undeclared randomness


class Reusing(nn.Module):
    """Writes its logits into one place, as captured graphs do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net().eval()
        self.out = torch.zeros(0)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = F.dropout(self.net(x), 0.3)
        if logits.requires_grad:
            return logits
        if len(self.out) != len(x):
            self.out = torch.zeros_like(logits)
        return self.out.copy_(logits)


def test_logits_that_share_memory_are_copied(batch: tuple[Tensor, Tensor]) -> None:
    with torch.no_grad():
        first, second = Classifier(Reusing(), noise=True).draws(batch[0], 2)
    assert not torch.equal(first, second)
    assert opened(Reusing(), batch[0], probe=True).clf.stochastic


class Counting(nn.Module):
    """Counts its passes in a buffer, which its logits depend on."""

    n: Tensor

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.register_buffer("n", torch.zeros(()))
        self.net = small_net().eval()
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        if self.in_place:
            self.n += 1
        else:
            self.n = self.n + 1
        logits: Tensor = self.net(x)
        return logits + self.n * torch.arange(3)


@pytest.mark.parametrize("in_place", [True, False])
def test_buffers_are_put_back_and_state_is_said(batch: tuple[Tensor, Tensor], in_place: bool) -> None:
    model = Counting(in_place=in_place)
    with pytest.warns(ModelWarning, match="keeps state from pass to pass"):
        first = advbench.evaluate(model, *batch, draws=2)
    assert float(model.n) == 0
    with pytest.warns(ModelWarning):
        assert advbench.evaluate(model, *batch, draws=2).to_bytes() == first.to_bytes()


def test_randomness_that_a_classifier_does_not_state_is_said(batch: tuple[Tensor, Tensor]) -> None:
    with pytest.warns(ModelWarning, match="random without Classifier"):
        assert advbench.evaluate(Classifier(Wrapped(drawn_by("torch"))), *batch).flags == ("unseeded",)
    with pytest.warns(ModelWarning, match="all draws are equal"):
        assert advbench.evaluate(Classifier(small_net().eval(), noise=True), *batch, draws=3).flags == ("equal_draws",)


def test_members_of_which_most_are_equal_are_random() -> None:
    net = small_net()
    flat = torch.cat([parameter.detach().flatten() for parameter in net.parameters()])
    bank = torch.stack([flat] * 49 + [2 * flat])
    check_trained("sgld", Classifier(net.eval(), SamplePosterior(net, bank)), small_data())


def test_faint_dropout_is_not_refused() -> None:
    assert advbench.get_defense("mc_dropout", stages=(1,), rate=1e-5).fit(small_net(), small_data()).stochastic


class Root(nn.Module):
    """A net whose gradient with respect to the images is no number."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits + torch.sqrt(0 * x.flatten(1).sum(1, keepdim=True))


def test_a_training_whose_adversary_has_no_gradient_is_refused() -> None:
    with pytest.raises(PluginError, match="finite logits and gradients"):
        advbench.get_defense("pgd_at", stages=(1,), batch_size=16).fit(Root(), small_data())


def test_pending_checks_are_bounded_by_size() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 1000))
    clf = Classifier(net, noise=True).requires_grad_(False)
    x, y = small_data().batch(slice(48))
    for _ in range(8):
        clf.input_gradient(x, y, cross_entropy, samples=20)
    assert clf.passes._elements < 2 * _ELEMENTS
    assert len(clf.passes._pending) < 8
