"""Noise inside a module: where it lies, how strong it is, and that nothing silences it."""

from __future__ import annotations

import copy
import importlib.metadata
import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import advbench
from advbench.attacks.base import Threat
from advbench.attacks.losses import cross_entropy
from advbench.errors import InputError
from advbench.models.classifier import Classifier
from advbench.models.noise import DropoutNoise, GaussianNoise, Noise
from advbench.models.posterior import GaussianPosterior
from advbench.models.saving import export_classifier, load_classifier
from advbench.registry import Registrar, Registry, hooks
from advbench.testing import same_weights, small_data, small_net

ALPHA = -1.7580993408473766  # where SELU saturates: what alpha dropout puts in place of a unit


def plain_net() -> nn.Sequential:
    """Two convolutions and two linear layers, no dropout, with fixed weights."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 2, 1), nn.Flatten(), nn.Linear(72, 40), nn.Linear(40, 3)
        )


def linear_net() -> nn.Sequential:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 50), nn.Linear(50, 40), nn.Linear(40, 3))


def images(count: int = 64) -> Tensor:
    return torch.rand((count, 1, 6, 6), generator=torch.Generator().manual_seed(0))


def differences(net: nn.Sequential, x: Tensor, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """For each layer of a chain: what arrived from the layer before, and what it was computed on."""
    outputs, inputs = [x], []
    for layer in net:
        layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
        layer.register_forward_hook(lambda _, args, output: outputs.append(output.detach()))
    Classifier(net, noise=True).reseed(seed)(x)
    return list(zip(outputs, inputs, strict=False))


def disturbed(net: nn.Sequential) -> list[int]:
    return [index for index, (before, after) in enumerate(differences(net, images())) if not torch.equal(before, after)]


# where it lies, and how strong it is


def test_gaussian_noise_lies_on_the_images_and_before_each_further_convolution() -> None:
    net = plain_net()
    GaussianNoise().install(net)
    assert disturbed(net) == [0, 1]


def test_without_convolutions_gaussian_noise_lies_before_each_further_linear_layer() -> None:
    net = linear_net()
    GaussianNoise().install(net)
    assert disturbed(net) == [0, 2, 3]


@pytest.mark.parametrize("net", [plain_net, linear_net])
def test_gaussian_noise_has_the_deviations_and_mean_zero(net: Callable[[], nn.Sequential]) -> None:
    module = net()
    GaussianNoise().install(module)
    added = [after - before for before, after in differences(module, images()) if not torch.equal(before, after)]
    for noise, std in zip(added, [0.2, 0.1, 0.1], strict=False):
        error = 5 * std / math.sqrt(noise.numel())
        assert float(noise.mean()) == pytest.approx(0, abs=error)
        assert float(noise.std()) == pytest.approx(std, abs=error / math.sqrt(2))


def test_dropout_lies_before_each_linear_layer_that_is_not_the_first_of_weights() -> None:
    net = plain_net()
    DropoutNoise(0.3).install(net)
    assert disturbed(net) == [3, 4]
    net = linear_net()
    DropoutNoise(0.3).install(net)
    assert disturbed(net) == [2, 3]


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_dropout_drops_at_its_rate_and_keeps_the_mean(rate: float) -> None:
    net = linear_net()
    DropoutNoise(rate).install(net)
    for before, after in differences(net, images())[2:]:
        kept = after != 0
        torch.testing.assert_close(after[kept], before[kept] / (1 - rate))
        count = after.numel()
        assert float(kept.float().mean()) == pytest.approx(1 - rate, abs=5 * math.sqrt(rate * (1 - rate) / count))
        error = float((before.square().sum() * rate / (1 - rate)).sqrt()) / count
        assert float(after.mean()) == pytest.approx(float(before.mean()), abs=5 * error)


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize(
    ("layer", "shape", "unit"),
    [
        (nn.Dropout, (500, 8), (1, 1)),
        (nn.Dropout1d, (500, 8, 3), (1, 1, 3)),
        (nn.Dropout2d, (500, 8, 3, 2), (1, 1, 3, 2)),
        (nn.Dropout3d, (500, 8, 3, 2, 2), (1, 1, 3, 2, 2)),
        (nn.AlphaDropout, (500, 8), (1, 1)),
        (nn.FeatureAlphaDropout, (500, 8, 3), (1, 1, 3)),
    ],
)
def test_a_nets_own_dropout_of_any_type_drops_its_units_at_the_noises_rate(
    layer: type[nn.Module], shape: tuple[int, ...], unit: tuple[int, ...], mode: bool
) -> None:
    own = layer(0.9).train(mode)
    rate = 0.3
    DropoutNoise(rate).install(own)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        out = own(torch.ones(shape))
    kept, dropped = 1 / (1 - rate), 0.0
    if "Alpha" in layer.__name__:
        scale = ((1 - rate) * (1 + ALPHA**2 * rate)) ** -0.5
        shift = -scale * rate * ALPHA
        kept, dropped = scale + shift, scale * ALPHA + shift
        assert (1 - rate) * shift + rate * dropped == pytest.approx(0, abs=1e-12)  # an input of mean 0 keeps it
    gone = torch.isclose(out, torch.tensor(dropped), atol=1e-6)
    assert bool(torch.isclose(out[~gone], torch.tensor(kept)).all())
    first = gone[tuple(slice(0, 1) if length > 1 else slice(None) for length in unit)]
    assert torch.equal(first.expand(shape), gone)
    share = float(first.float().mean())
    assert share == pytest.approx(rate, abs=5 * math.sqrt(rate * (1 - rate) / first.numel()))


def test_a_nets_own_dropout_layers_are_the_only_place() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 50), nn.Dropout(0.2), nn.Linear(50, 40), nn.Linear(40, 3))
    DropoutNoise(0.5).install(net)
    assert disturbed(net) == []
    assert not torch.equal(net[2](torch.ones(50)), torch.ones(50))


# what nothing switches off


def noisy(noise: Noise, net: Callable[[], nn.Module] = plain_net) -> Classifier:
    return Classifier(net().eval(), noise=noise).requires_grad_(False)


def by_classifier(clf: Classifier) -> Classifier:
    return clf.eval()


def by_module(clf: Classifier) -> Classifier:
    clf.module.eval()
    return clf


def by_every_submodule(clf: Classifier) -> Classifier:
    for part in clf.modules():
        part.eval()
    return clf


NOISES = [DropoutNoise, GaussianNoise]
SILENCERS = [by_classifier, by_module, by_every_submodule, copy.deepcopy]


@pytest.mark.parametrize("net", [plain_net, small_net])
@pytest.mark.parametrize("silence", SILENCERS)
@pytest.mark.parametrize("noise", NOISES)
def test_noise_stays_what_it_is(
    noise: Callable[[], Noise], silence: Callable[[Classifier], Classifier], net: Callable[[], nn.Module]
) -> None:
    clf = noisy(noise(), net)
    expected = clf.reseed(1).draws(images(4), 3)
    assert torch.equal(silence(clf).reseed(1).draws(images(4), 3), expected)
    assert not torch.equal(expected[0], expected[1])


@pytest.mark.parametrize("noise", NOISES)
def test_noise_is_fresh_for_each_image(noise: Callable[[], Noise]) -> None:
    logits = noisy(noise())(images(1).repeat(6, 1, 1, 1))
    assert all(not torch.equal(one, other) for one, other in itertools.combinations(logits, 2))


@pytest.mark.parametrize("noise", NOISES)
def test_a_frozen_classifier_is_deterministic(noise: Callable[[], Noise]) -> None:
    clf, x = noisy(noise()), images(4)
    frozen = clf.frozen(3)
    assert not frozen.stochastic
    assert torch.equal(frozen(x), frozen(x))
    assert torch.equal(frozen(x), clf.at(clf.draw(3), x))
    assert not torch.equal(frozen(x), clf.frozen(4)(x))


def test_gradients_flow_through_gaussian_noise_unchanged() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    clf = noisy(GaussianNoise(), lambda: net)
    x = images(4).requires_grad_(True)
    (gradient,) = torch.autograd.grad(clf(x)[:, 1].sum(), x)
    torch.testing.assert_close(gradient, net[1].weight[1].detach().view(1, 1, 6, 6).expand_as(x))


def test_negative_seeds_mirror_gaussian_noise() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    clf = noisy(GaussianNoise(), lambda: net)
    x = images(4)
    seeds = clf.fresh_seeds(4)
    assert seeds[1::2] == [-seed for seed in seeds[0::2]]
    noiseless = nn.functional.linear(x.flatten(1), net[1].weight, net[1].bias)
    torch.testing.assert_close((clf.at(clf.draw(7), x) + clf.at(clf.draw(-7), x)) / 2, noiseless)
    assert not torch.equal(clf.at(clf.draw(7), x), clf.at(clf.draw(-7), x))
    assert torch.equal(clf.frozen(7)(x), clf.at(clf.draw(7), x))
    assert all(seed > 0 for seed in noisy(DropoutNoise()).fresh_seeds(4))


def test_gradients_flow_through_the_units_that_dropout_keeps() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 36, bias=False), nn.Linear(36, 1, bias=False))
    nn.init.eye_(net[1].weight)
    nn.init.ones_(net[2].weight)
    clf = noisy(DropoutNoise(0.25), lambda: net)
    x = images(4) + 0.1
    gradient = clf.input_gradient(x, torch.zeros(4), lambda logits, _: logits[:, 0], draws=[clf.draw(5)]).value
    assert gradient.unique().tolist() == pytest.approx([0, 1 / 0.75])
    torch.testing.assert_close((gradient * x).flatten(1).sum(1, keepdim=True), clf.at(clf.draw(5), x))


# what is stored


@pytest.mark.parametrize("chunk", [None, 2])
@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize("noise", [DropoutNoise(0.3), GaussianNoise(0.4, 0.05)])
def test_stored_noise_gives_equal_draws(noise: Noise, gaussian: bool, chunk: int | None) -> None:
    net = small_net().eval()
    posterior = GaussianPosterior(net, 0.1) if gaussian else None
    clf = Classifier(net, posterior, noise=noise).requires_grad_(False)
    tensors, values = export_classifier(clf)
    raw = safetensors.torch.save({name: tensor.contiguous().clone() for name, tensor in tensors.items()})
    again = load_classifier(small_net(), safetensors.torch.load(raw), json.loads(json.dumps(values)))
    again.chunk = chunk
    x, y = small_data().batch(slice(5))
    assert torch.equal(clf.reseed(1).draws(x, 3), again.reseed(1).draws(x, 3))
    one, two = (c.reseed(1).input_gradient(x, y, cross_entropy, samples=2).value for c in (clf, again))
    assert torch.equal(one, two)
    assert export_classifier(again)[1] == values


def test_a_module_that_holds_noise_is_refused() -> None:
    net = plain_net()
    DropoutNoise().install(net)
    for again in (DropoutNoise(), GaussianNoise()):
        with pytest.raises(InputError, match=r"^the module already contains noise; pass a module without noise$"):
            again.install(net)
    with pytest.raises(InputError, match="already contains noise"):
        noisy(GaussianNoise(), lambda: copy.deepcopy(net))


@pytest.mark.parametrize(
    ("noise", "net", "message"),
    [
        (
            DropoutNoise(),
            nn.Sequential(nn.Flatten(), nn.Linear(36, 3)),
            "no layer for dropout: expected a dropout layer",
        ),
        (DropoutNoise(), nn.Conv2d(1, 1, 1), "no layer for dropout: expected a dropout layer"),
        (GaussianNoise(), nn.Flatten(), "no layer for noise: expected a convolution or a linear layer"),
    ],
)
def test_a_net_without_a_place_is_refused_in_one_line(noise: Noise, net: nn.Module, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Classifier(net, noise=noise)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("noise", [{"kind": "cosmic"}, {"kind": "dropouts", "rate": 0.5}, {}])
def test_noise_of_unknown_kind_is_refused(noise: dict[str, Any]) -> None:
    tensors, values = export_classifier(noisy(DropoutNoise()))
    with pytest.raises(InputError, match=r"unknown noise '.*': expected one of dropout, gaussian"):
        load_classifier(plain_net(), tensors, values | {"noise": noise})


class Salt(Noise):
    """A third party's noise: a constant share of pixels at one."""

    kind = "salt"

    def __init__(self, share: float = 0.1) -> None:
        self.share = share

    def values(self) -> dict[str, Any]:
        return {"share": self.share}

    def attach(self, module: nn.Module) -> None:
        module.register_forward_pre_hook(self.season)

    def season(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (torch.where(torch.rand_like(args[0]) < self.share, torch.ones(()), args[0]),)


def test_a_third_partys_noise_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plugin:
        @hooks.hookimpl
        def advbench_register(self, register: Registrar) -> None:
            register.noise("salt", f"{__name__}:Salt", "pixels at one")

    found = Registry()
    found._load(Plugin(), "salt", importlib.metadata.distribution("advbench"))
    clf = noisy(Salt(0.4))
    tensors, values = export_classifier(clf)
    with pytest.raises(InputError, match="unknown noise 'salt'"):
        load_classifier(plain_net(), tensors, values)
    monkeypatch.setattr("advbench.models.saving.registry", lambda: found)
    again = load_classifier(plain_net(), tensors, values)
    assert isinstance(again.noise, Salt)
    assert torch.equal(clf.reseed(2).draws(images(4), 3), again.reseed(2).draws(images(4), 3))


# the defenses made of it

SHORT = {"stages": (1,), "batch_size": 16}


@pytest.mark.parametrize(
    ("name", "params", "stored"),
    [
        ("rse", {}, {"kind": "gaussian", "first": 0.2, "inner": 0.1}),
        ("rse", {"first_std": 0.5, "inner_std": 0.3}, {"kind": "gaussian", "first": 0.5, "inner": 0.3}),
        ("mc_dropout", {}, {"kind": "dropout", "rate": 0.5}),
        ("mc_dropout", {"rate": 0.1}, {"kind": "dropout", "rate": 0.1}),
    ],
)
def test_a_trained_noisy_net_stays_random_when_attacked(name: str, params: dict[str, Any], stored: object) -> None:
    clf = advbench.get_defense(name, **SHORT, **params).fit(small_net(), small_data())
    assert export_classifier(clf)[1]["noise"] == stored
    x, y = small_data().batch(slice(8))
    expected = clf.reseed(1).draws(x, 2)
    by_every_submodule(clf.eval())
    x_adv = advbench.get_attack("eot_pgd", steps=2, samples=3)(clf, x, y, Threat("linf", 0.1))
    assert float((x_adv - x).abs().max()) == pytest.approx(0.1, abs=1e-6)
    assert torch.equal(clf.reseed(1).draws(x, 2), expected)
    assert not torch.equal(expected[0], expected[1])
    assert clf.stochastic


@pytest.mark.parametrize(("name", "params"), [("rse", {"first_std": 0, "inner_std": 0}), ("mc_dropout", {"rate": 0})])
def test_at_strength_zero_training_is_plain_training_bit_for_bit(name: str, params: dict[str, Any]) -> None:
    plain = advbench.get_defense("erm", **SHORT).fit(plain_net(), small_data())
    assert same_weights(plain, advbench.get_defense(name, **SHORT, **params).fit(plain_net(), small_data()))


@pytest.mark.parametrize("name", ["rse", "mc_dropout"])
def test_noise_is_on_in_training(name: str) -> None:
    plain = advbench.get_defense("erm", **SHORT).fit(plain_net(), small_data())
    assert not same_weights(plain, advbench.get_defense(name, **SHORT).fit(plain_net(), small_data()))


def test_a_layer_that_is_never_called_is_no_place_for_dropout() -> None:
    class Attentive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(36, 16)
            self.attend = nn.MultiheadAttention(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x.flatten(1)).view(-1, 2, 8)
            attended: Tensor = self.attend(hidden, hidden, hidden)[0]
            return attended.flatten(1)

    with pytest.raises(InputError, match="the module has no layer for dropout"):
        Classifier(Attentive(), noise=DropoutNoise(0.5))


@pytest.mark.parametrize("rate", [-0.1, 1.0, 2.0, float("nan")])
def test_a_rate_that_is_no_probability_below_one_is_refused(rate: float) -> None:
    with pytest.raises(InputError, match=r"dropout rate: expected a number in \[0, 1\)"):
        DropoutNoise(rate)
