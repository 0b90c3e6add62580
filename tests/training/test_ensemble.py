"""Ensembles of nets trained apart: members, mixtures of posteriors, checkpoints, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import advbench
from advbench.attacks import Threat
from advbench.errors import AdvbenchError, InputError
from advbench.grid.spec import make_spec, resolve
from advbench.keys import derive
from advbench.models import Classifier, MixturePosterior
from advbench.models.posterior import GaussianPosterior
from advbench.models.saving import export_classifier, load_classifier, read_tensors, tensor_bytes
from advbench.progress import Progress
from advbench.testing import InPlace, same_weights, small_data, small_net
from advbench.training import Defense, TrainContext, gaussian

SHORT: dict[str, Any] = {"stages": (2, 1), "batch_size": 16}


def fresh(seed: int) -> nn.Module:
    net = small_net()
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(seed)
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return net


def ensemble(method: str = "erm", members: int = 3, **params: Any) -> Defense:
    return advbench.get_defense("deep_ensemble", members=members, method=method, params={**SHORT, **params})


def trained(method: str = "erm", members: int = 3, **params: Any) -> Classifier:
    return ensemble(method, members, **params).fit(small_net(), small_data(), TrainContext(seed=3, fresh=fresh))


def alone(method: str, k: int, **params: Any) -> Classifier:
    """What the k-th member must be: the method under the member's seed."""
    seed = derive(3, "member", k)
    defense = advbench.get_defense(method, **{**SHORT, **params})
    return defense.fit(fresh(derive(seed, "init")), small_data(), TrainContext(seed=seed))


def mixed(clf: Classifier) -> MixturePosterior:
    assert isinstance(clf.posterior, MixturePosterior)
    return clf.posterior


# members


def test_members_are_what_the_method_trains_under_seeds_of_their_own_and_the_mean_is_exact() -> None:
    clf = trained()
    x, y = small_data().batch(slice(None))
    assert clf.members == 3
    expected = torch.stack([alone("erm", k)(x) for k in range(3)])
    found = torch.stack([clf.at(clf.member(k), x) for k in range(3)])
    assert torch.equal(found, expected)  # batch norm's statistics included
    assert all((found[k] - found[j]).abs().max() > 0.05 for k, j in ((0, 1), (0, 2), (1, 2)))
    predictions = advbench.evaluate(clf, x, y)
    assert (predictions.draws, predictions.enumerated) == (3, True)
    torch.testing.assert_close(torch.as_tensor(predictions.mean_probs), expected.softmax(-1).mean(0), check_dtype=False)


def test_an_attack_with_as_many_samples_as_members_has_the_exact_gradient() -> None:
    clf = trained()
    x, y = small_data().batch(slice(6))
    leaf = x.clone().requires_grad_()
    mean = torch.stack([alone("erm", k)(leaf) for k in range(3)]).softmax(-1).mean(0)
    (expected,) = torch.autograd.grad(torch.nn.functional.nll_loss(mean.log(), y, reduction="sum"), leaf)
    found = clf.input_gradient(x, y, advbench.attacks.cross_entropy, samples=3, tilt=-1.0).value
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("method", ["pgd_at", "trades", "bal"])
def test_adversarial_methods_and_those_that_start_from_another_train_members(method: str) -> None:
    params: dict[str, Any] = {"init_from": "erm"} if method == "bal" else {"steps": 2}
    if method == "bal":
        params |= {"chains": 2, "samples": 2, "image_steps": 2}
    clf = trained(method, 2, **params)
    x, y = small_data().batch(slice(6))
    assert clf.members == (4 if method == "bal" else 2)  # banks of the members are one larger bank
    theirs = [alone(method, k, **params) for k in range(2)]
    wanted = [other.at(other.member(j) if other.members != 1 else other.draw(0), x) for other in theirs for j in (0, 1)]
    found = [clf.at(clf.member(k), x) for k in range(clf.members or 0)]
    assert all(any(torch.equal(one, other) for other in found) for one in wanted)
    assert advbench.get_attack("pgd", steps=2)(clf, x, y, Threat("linf", 0.1)).shape == x.shape


# mixtures of random members


def test_draws_of_gaussian_members_are_draws_of_one_of_them_each_as_often() -> None:
    clf = trained("bnn", 3)
    posterior = mixed(clf)
    components = [posterior.component(k) for k in range(3)]
    assert all(isinstance(component, GaussianPosterior) for component in components)
    assert clf.members is None
    means = torch.stack([gaussian(alone("bnn", k)).mean for k in range(3)])
    generator = torch.Generator().manual_seed(0)
    nearest, at_nearest = [], []
    for _ in range(600):
        draw = posterior.sample(generator)
        flat = torch.cat([draw[name].flatten() for name, _ in small_net().named_parameters()])
        nearest.append(int((means - flat).norm(dim=1).argmin()))
        at_nearest.append(torch.equal(draw["1.running_mean"], posterior.buffers_of(nearest[-1])["1.running_mean"]))
    counts = torch.bincount(torch.tensor(nearest), minlength=3)
    assert bool(((counts - 200).abs() < 4 * (600 * 2 / 9) ** 0.5).all())
    assert all(at_nearest)
    assert not torch.equal(posterior.buffers_of(0)["1.running_mean"], posterior.buffers_of(1)["1.running_mean"])


def test_mirrored_draws_stay_in_their_member() -> None:
    clf = trained("bnn", 3)
    means = torch.stack([gaussian(alone("bnn", k)).mean for k in range(3)])
    nearest = []
    for seed in range(1, 30):
        pair = [clf.draw(each).weights for each in (seed, -seed)]
        one, other = (torch.cat([draw[n].flatten() for n, _ in small_net().named_parameters()]) for draw in pair)
        middle = (one + other) / 2
        nearest.append(int((means - middle).norm(dim=1).argmin()))
        torch.testing.assert_close(middle, means[nearest[-1]])
        assert torch.equal(pair[0]["1.running_mean"], pair[1]["1.running_mean"])
    assert set(nearest) == {0, 1, 2}


@pytest.mark.parametrize("method", ["erm", "bnn", "mc_dropout", "rse", "sgld", "apd"])
def test_they_are_stored_frozen_and_moved(method: str) -> None:
    params: dict[str, Any] = {}
    if method in ("sgld", "apd"):
        params = {"burn_in": 2, "interval": 1, "samples": 25}
    if method == "apd":
        params |= {"gan_steps": 2, "latent": 3, "hidden": (5,)}
    clf = trained(method, 2, **params)
    tensors, values = export_classifier(clf)
    again = load_classifier(small_net(), read_tensors(tensor_bytes(tensors)), json.loads(json.dumps(values)))
    x, _ = small_data().batch(slice(6))
    assert torch.equal(clf.reseed(1).draws(x, 5), again.reseed(1).draws(x, 5))
    assert torch.equal(clf.frozen(4)(x), clf.at(clf.draw(4), x))
    assert clf.frozen(4).members == 1
    assert clf.double().posterior.device == torch.device("cpu")


def test_a_frozen_draw_is_stored_with_the_buffers_of_its_member() -> None:
    frozen = trained().frozen(1)
    tensors, values = export_classifier(frozen)
    again = load_classifier(small_net(), read_tensors(tensor_bytes(tensors)), values)
    x, _ = small_data().batch(slice(6))
    assert torch.equal(frozen(x), again(x))


def test_a_module_that_changes_its_buffers_changes_no_member() -> None:
    clf = trained()
    before = {name: tensor.clone() for name, tensor in export_classifier(clf)[0].items()}
    clf.module.train()
    clf(small_data().batch(slice(8))[0])
    after = export_classifier(clf)[0]
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("buffer."))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"0.samples.samples.5.bias": None}, "5.bias"),
        ({"1.samples.samples.0.weight": "1.gaussian.mean.0.weight"}, "component 1 of the mixture"),
        ({"buffers.1.running_mean": None}, "running_mean"),
        ({"buffers.1.running_mean": torch.zeros(3, 5)}, "size mismatch for 1.running_mean"),
        ({"0.samples.more": torch.zeros(1)}, "lacks 0.samples.more"),
        ({"9.samples.samples.0.weight": torch.zeros(1)}, "components of the mixture are missing"),
    ],
)
def test_a_stored_mixture_that_is_incomplete_is_refused(change: dict[str, Any], reason: str) -> None:
    tensors, values = export_classifier(trained())
    for name, value in change.items():
        if isinstance(value, Tensor):
            tensors[name] = value
        else:
            tensor = tensors.pop(name)
            tensors |= {value: tensor} if value else {}
    with pytest.raises(InputError, match=reason):
        load_classifier(small_net(), tensors, values)


def test_statistics_are_those_of_each_member() -> None:
    defense = ensemble("bnn", 2)
    clf = defense.fit(small_net(), small_data(), TrainContext(seed=3, fresh=fresh))
    single = advbench.get_defense("bnn", **SHORT)
    expected = [single.statistics(alone("bnn", k)) for k in range(2)]
    assert defense.statistics(clf) == {"members": expected}
    assert ensemble("erm").statistics(trained()) == {}


# training


class Killed(Exception):  # noqa: N818
    pass


class Slot:
    """A checkpoint slot in memory that kills the training at its n-th save."""

    def __init__(self, saves: int) -> None:
        self.left = saves
        self.saved: tuple[bytes, str] | None = None

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        return None if self.saved is None else (read_tensors(self.saved[0]), json.loads(self.saved[1]))

    def save(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        self.saved = tensor_bytes(tensors), json.dumps(values)
        self.left -= 1
        if self.left == 0:
            raise Killed


@pytest.mark.parametrize("saves", [2, 10, 20, 24, 30])
@pytest.mark.parametrize("method", ["erm", "bnn"])
def test_a_training_killed_in_any_member_goes_on_to_the_same_bits(method: str, saves: int) -> None:
    """Nine steps a member and a save after each; the tenth is that of the finished member."""
    slot = Slot(saves)
    context = TrainContext(seed=3, fresh=fresh, checkpoint=slot, checkpoint_seconds=0.0)
    with pytest.raises(Killed):
        ensemble(method).fit(small_net(), small_data(), context)
    assert slot.saved
    assert len(json.loads(slot.saved[1])["members"]) == saves // 10
    seen: list[Progress] = []
    again = TrainContext(seed=3, fresh=fresh, checkpoint=slot, checkpoint_seconds=1e9, progress=seen.append)
    assert same_weights(ensemble(method).fit(small_net(), small_data(), again), trained(method))
    done = saves - saves // 10
    assert [each.step for each in seen] == list(range(done + 1, 28))
    assert {each.total for each in seen} <= {27}


def test_saving_obeys_the_least_time_between_two_saved_states() -> None:
    slot = Slot(1)
    context = TrainContext(seed=3, fresh=fresh, checkpoint=slot, checkpoint_seconds=1e9)
    ensemble().fit(small_net(), small_data(), context)
    assert slot.saved is None


def test_without_somebody_who_makes_nets_the_layers_are_reset() -> None:
    clf = ensemble(stages=(1,), lr=1e-12).fit(small_net(), small_data())
    weights = [clf.member(k).weights["5.weight"] for k in range(3)]
    assert all((one - other).abs().max() > 0.01 for one, other in ((weights[0], weights[1]), (weights[0], weights[2])))
    bound = 144**-0.5  # that of nn.Linear
    assert all(0.9 * bound < weight.abs().max() <= bound + 1e-6 for weight in weights)


def test_a_layer_that_cannot_be_reset_is_named() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    net = nn.Sequential(small_net(), Scale())
    with pytest.raises(InputError, match=r"layer 1 of the net \(Scale\): expected a method reset_parameters"):
        ensemble().fit(net, small_data())
    assert ensemble().fit(net, small_data(), TrainContext(fresh=lambda seed: nn.Sequential(fresh(seed), Scale())))


def test_weights_that_no_draw_reaches_are_refused_before_a_step() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.unused = InPlace(small_net()), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.net(x)
            return logits

    net = Unused()
    seen: list[Progress] = []
    with pytest.raises(AdvbenchError, match=r"unused\.weight and 1 more without effect"):
        ensemble().fit(net, small_data(), TrainContext(progress=seen.append))
    assert not seen


# hyperparameters


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"method": "erm2"}, "unknown defense 'erm2'"),
        ({"method": "deep_ensemble"}, "expected a method other than an ensemble, got deep_ensemble; increase members"),
        ({"members": 0}, "hyperparameter 'members' of DeepEnsemble"),
        ({"params": {"stage": 1}}, "unknown hyperparameter of ERM 'stage'.*did you mean 'stages'"),
        ({"params": {"lr": -1}}, "params of DeepEnsemble: hyperparameter 'lr' of ERM"),
        ({"params": {"preset": "papers"}}, "unknown preset of ERM 'papers'"),
        ({"params": {"init_from": "bnn@x"}}, "init_from in params of DeepEnsemble"),
        ({"params": {"init_from": "deep_ensemble"}}, "init_from in params of DeepEnsemble"),
    ],
)
def test_bad_hyperparameters_are_refused_at_once(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        advbench.get_defense("deep_ensemble", **values)
    spec = make_spec({"defenses": ["deep_ensemble"], "attacks": ["none"], "set": {"deep_ensemble": values}})
    with pytest.raises(InputError, match=reason):
        resolve(spec)


def test_keys_hold_the_methods_resolved_hyperparameters_and_its_version() -> None:
    values = {"method": "bal", "params": {"lr": 0.5}}
    spec = {"defenses": ["deep_ensemble"], "attacks": ["none"], "set": {"deep_ensemble": values}}
    (choice,), _ = resolve(make_spec(spec))
    params = choice.params["params"]
    assert params["lr"] == 0.5
    assert params["stages"] == [8, 2]  # the method's own for digits
    assert set(choice.parts) == {"bal", "erm"}
    again = advbench.get_defense("deep_ensemble", **choice.params)
    assert again.params.model_dump(mode="json") == choice.params
    assert (choice.passes or 0) > 5 * 10 * 16
