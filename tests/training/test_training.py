"""The training loop and the four training methods, against answers that are known."""

from __future__ import annotations

import copy
import functools
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import advbench
from advbench.data.base import Data
from advbench.errors import InputError, PluginError
from advbench.models.classifier import Classifier
from advbench.models.nets import vgg16
from advbench.models.posterior import GaussianPosterior
from advbench.models.saving import export_classifier
from advbench.progress import Progress
from advbench.testing import DefenseConformance, same_weights, small_data, small_net
from advbench.training.base import Resources, TrainContext
from advbench.training.gradient import ErmLoss, TrainParams, last_linear
from advbench.training.loop import TrainState, crop_and_flip
from advbench.training.optimizers import SGD, Adam


def objective(name: str, clf: Classifier, x: Tensor, y: Tensor, count: int, **params: object) -> Tensor:
    terms, _ = advbench.get_defense(name, **params).loss(clf, x, y, count)  # type: ignore[attr-defined]
    return torch.stack(list(terms.values())).sum()


def test_gradient_of_the_objective_is_the_rand_layers_formula_at_alpha_1() -> None:
    """Adv-BNN appendix B: d/dmu = g + mu / (s0^2 N), d/ds = g sigma eps - 1/N + sigma^2 / (s0^2 N)."""
    net, s0, count = small_net().eval(), 0.15, 1000
    posterior = GaussianPosterior(net, std=0.1)
    clf = Classifier(net, posterior).reseed(5)
    x, y = small_data().batch(slice(12))
    objective("adv_bnn", clf, x, y, count, kl_weight=1.0, prior_std=s0).backward()  # type: ignore[no-untyped-call]

    seed = advbench.keys.derive(5, "draw", 0)
    noise = torch.empty_like(posterior.mean).normal_(generator=torch.Generator().manual_seed(seed))
    mean, sigma = posterior.mean.detach(), posterior.log_std.detach().exp()
    weights = (mean + sigma * noise).requires_grad_(True)
    logits = torch.func.functional_call(net, posterior.layout.views(weights), (x,))
    (g,) = torch.autograd.grad(F.cross_entropy(logits, y), weights)
    torch.testing.assert_close(posterior.mean.grad, g + mean / (s0**2 * count))
    expected = g * sigma * noise - 1 / count + sigma**2 / (s0**2 * count)
    torch.testing.assert_close(posterior.log_std.grad, expected)


def test_kl_scope_counts_the_last_linear_layer_alone() -> None:
    net = vgg16(3, 32, 32, 10)
    names = last_linear(net)
    assert sum(dict(net.named_parameters())[name].numel() for name in names) == 5130
    small = small_net()
    posterior = GaussianPosterior(small, std=0.1)
    clf = Classifier(small.eval(), posterior)
    x, y = small_data().batch(slice(4))
    terms, _ = advbench.get_defense("adv_bnn", kl_scope="classifier", kl_weight=2.0).loss(clf, x, y, 10)  # type: ignore[attr-defined]
    torch.testing.assert_close(terms["kl"], posterior.kl(0.15, ["5.weight", "5.bias"]) * 0.2)
    with pytest.raises(InputError, match="a module with a linear layer"):
        last_linear(nn.Conv2d(1, 1, 1))


def test_without_data_term_the_posterior_becomes_the_prior() -> None:
    """Images that say nothing: the ELBO's optimum is N(0, prior_std^2)."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    data = Data(torch.zeros(8, 1, 2, 2), torch.arange(8) % 2, 2)
    defense = advbench.get_defense(
        "bnn", stages=(3000, 500), lr=0.02, batch_size=8, prior_std=0.3, init_std=0.05, kl_weight=8.0
    )
    posterior = defense.fit(net, data).posterior
    assert isinstance(posterior, GaussianPosterior)
    torch.testing.assert_close(posterior.mean, torch.zeros(8), atol=5e-3, rtol=0)
    torch.testing.assert_close(posterior.log_std.exp(), torch.full((8,), 0.3), atol=5e-3, rtol=0)


def test_erm_finds_the_logistic_regression() -> None:
    """With an L2 penalty the optimum is that of scikit-learn's solver."""
    from sklearn.linear_model import LogisticRegression

    generator = torch.Generator().manual_seed(0)
    x = torch.rand((200, 1, 1, 2), generator=generator)
    y = (x.flatten(1).sum(1) + 0.3 * torch.randn(200, generator=generator) > 1).long()
    decay = 0.01
    defense = advbench.get_defense(
        "erm", stages=(1500, 500), batch_size=200, lr=0.5, optimizer="sgd", weight_decay=decay
    )
    clf = defense.fit(nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False)), Data(x, y, 2))
    weight = next(clf.module.parameters())
    # The penalty decay/2 * (|w0|^2 + |w1|^2) on two rows is decay/4 * |w1 - w0|^2 on their difference.
    solver = LogisticRegression(C=1 / (decay / 2 * 200), fit_intercept=False, tol=1e-10).fit(x.flatten(1), y)
    torch.testing.assert_close(
        (weight[1] - weight[0]).double(), torch.from_numpy(solver.coef_[0]), atol=1e-3, rtol=1e-3
    )


def test_adversarial_training_on_a_linear_model_minimises_the_shifted_loss() -> None:
    """For logits w.x the worst linf image lowers the margin by eps |w|_1, which PGD must find in training."""
    x, y = small_data(classes=2).batch(slice(None))
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    defense = advbench.get_defense("pgd_at", eps=0.05, steps=5)
    clf = Classifier(net)
    middle = 0.2 + 0.6 * x
    worst = defense.perturb(clf, middle, y, torch.Generator().manual_seed(0))  # type: ignore[attr-defined]
    normal = (net[1].weight[1 - y] - net[1].weight[y]).detach().view_as(x)
    torch.testing.assert_close(worst, middle + 0.05 * normal.sign())


def test_crafting_in_training_leaves_running_statistics_to_the_training_passes() -> None:
    clf = Classifier(small_net().eval())
    x, y = small_data().batch(slice(8))
    before = copy.deepcopy(clf.module.state_dict())
    advbench.get_defense("pgd_at").perturb(clf, x, y, torch.Generator())  # type: ignore[attr-defined]
    assert all(torch.equal(before[name], tensor) for name, tensor in clf.module.state_dict().items())


def test_learning_rate_falls_tenfold_at_each_stage_and_progress_is_told() -> None:
    seen: list[Progress] = []
    rates: list[float] = []
    defense = advbench.get_defense("erm", stages=(2, 1, 1), batch_size=16, lr=0.1)
    original = type(defense).update

    class Spying(type(defense)):  # type: ignore[misc]
        def update(self, state, *rest):  # type: ignore[no-untyped-def]
            rates.append(state.optimizers["main"].param_groups[0]["lr"])
            return original(self, state, *rest)

    Spying(**defense._given).fit(small_net(), small_data(), TrainContext(progress=seen.append))
    assert rates == pytest.approx([0.1] * 6 + [0.01] * 3 + [0.001] * 3)
    assert [p.step for p in seen] == list(range(1, 13))
    assert {p.total for p in seen} == {12}
    assert seen[-1].values.keys() == {"loss", "train accuracy"}


def test_every_image_is_seen_once_an_epoch_in_batches_of_nearly_equal_size() -> None:
    from advbench.training.loop import _batches

    data = small_data(10)
    parts = list(_batches(0, 6, 3, data, seed=1))
    assert [len(part) for part in parts] == [4, 3, 3, 4, 3, 3]
    assert sorted(torch.cat(parts[:3]).tolist()) == list(range(10))
    assert not torch.equal(torch.cat(parts[:3]), torch.cat(parts[3:]))
    assert all(torch.equal(a, b) for a, b in zip(parts[4:], _batches(4, 6, 3, data, seed=1), strict=True))


GAN = {"lr": 1e-9, "burn_in": 100, "samples": 2, "hidden": (4,), "gan_steps": 50}


@pytest.mark.parametrize(
    ("name", "params", "term"),
    [
        ("erm", {"lr": 1e30}, "loss"),
        ("bnn", {"kl_weight": 1e39}, "kl"),
        ("hierarchical_vi", {"lr": 1e30}, "(loss|kl)"),
        ("adversarial_sampling", {"lr": 1e30}, "(loss|kl)"),
        ("sgld", {"lr": 1e30, "burn_in": 0}, "loss"),
        ("bal", {"lr": 1e30, "image_steps": 1}, "loss"),
        ("apd", {**GAN, "gan_lr": 1e38}, "(critic|generator) loss"),
    ],
)
def test_a_loss_that_is_not_finite_stops_with_step_and_term(name: str, params: dict[str, float], term: str) -> None:
    defense = advbench.get_defense(name, stages=(50,), batch_size=16, **params)
    with pytest.raises(PluginError, match=rf"training step \d+ of (150|200): expected a finite {term}, got (nan|inf)"):
        defense.fit(small_net(), small_data())


@pytest.mark.parametrize(
    ("data", "net", "message"),
    [
        ((torch.rand(4, 1, 6, 6), torch.zeros(4)), small_net(), "training data: expected an advbench.Data, got tuple"),
        (Data(torch.rand(4, 1, 6, 6) * 9, torch.zeros(4).long(), 3), small_net(), r"expected values in \[0, 1\]"),
        (Data(torch.rand(4, 1, 6, 6), torch.full((4,), 3), 3), small_net(), r"expected classes 0\.\.2, got 3\.\.3"),
        (Data(torch.rand(0, 1, 6, 6), torch.zeros(0).long(), 3), small_net(), "expected at least one image, got 0"),
        (small_data(), small_net(classes=5), "the module's output: expected 3 logits, one per class, got 5"),
    ],
)
def test_data_and_nets_that_do_not_fit_are_refused_before_training(data: Data, net: nn.Module, message: str) -> None:
    with pytest.raises(InputError, match=message):
        advbench.get_defense("erm").fit(net, data)


def test_crop_and_flip_gives_shifted_or_mirrored_images() -> None:
    x = torch.arange(1, 26.0).view(1, 1, 5, 5).repeat(300, 1, 1, 1) / 25
    out = crop_and_flip(x, torch.Generator().manual_seed(0), padding=2)
    padded = F.pad(x[:1], (2, 2, 2, 2))
    allowed = {
        tuple(image.flatten().tolist())
        for i in range(5)
        for j in range(5)
        for image in (padded[..., i : i + 5, j : j + 5], padded[..., i : i + 5, j : j + 5].flip(-1))
    }
    seen = {tuple(image.flatten().tolist()) for image in out}
    assert seen <= allowed
    assert len(seen) > 45


def test_defaults_of_the_data_set_apply_unless_given_by_hand() -> None:
    chosen = advbench.get_defense("adv_bnn", lr=0.5).for_dataset("digits").params
    assert (chosen.lr, chosen.eps, chosen.batch_size) == (0.5, 0.15, 64)
    paper = advbench.get_defense("adv_bnn", preset="paper").for_dataset("digits").params
    assert (paper.lr, paper.kl_scope, paper.eps) == (0.01, "classifier", 8 / 256)


def test_data_given_as_uint8_trains_like_floats() -> None:
    data = small_data()
    grey = (data.images * 255).round().to(torch.uint8)
    params = {"stages": (1,), "batch_size": 16}
    one = advbench.get_defense("erm", **params).fit(small_net(), Data(grey, data.labels, 3))
    two = advbench.get_defense("erm", **params).fit(small_net(), Data(grey.float() / 255, data.labels, 3))
    assert same_weights(one, two)


def test_a_users_own_net_is_trained_into_a_classifier() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = nn.Linear(36, 8)
            self.tied = self.hidden
            self.out = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.out(self.tied(x.flatten(1)).tanh())
            return logits

    data = small_data()
    clf = advbench.get_defense("bnn", stages=(40,), batch_size=16, lr=0.02, init_std=0.05).fit(Own(), data)
    assert advbench.evaluate(clf, *data.batch(slice(None))).accuracy > 0.9
    assert math.isclose(advbench.evaluate(clf, *data.batch(slice(None)), draws=3).draws, 3)


def test_the_last_linear_layer_is_found_where_its_weight_is_tied() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 16, bias=False), nn.ReLU(), nn.Linear(16, 16, bias=False))
    net[3].weight = net[1].weight
    assert last_linear(net) == ["1.weight"]


def test_parameters_of_odd_types_are_refused_in_one_line() -> None:
    data = small_data()
    net = small_net()
    net.register_parameter("count", nn.Parameter(torch.arange(3), requires_grad=False))
    erm = advbench.get_defense("erm", stages=(1,))
    with pytest.raises(InputError, match=r"parameter count: expected torch\.float32, got torch\.int64"):
        erm.fit(net, data)
    net = small_net()
    net[5].double()
    with pytest.raises(InputError, match=r"parameter 5\.weight: expected torch\.float32, got torch\.float64"):
        erm.fit(net, data)
    with pytest.raises(InputError, match=r"parameter 1\.weight: expected an initialised parameter, got a lazy one"):
        erm.fit(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), data)


# Numbers that METHODS takes from the papers and their released code: (method, preset, hyperparameter, value).
PUBLISHED = [
    ("adv_bnn", "paper", "stages", (80, 60, 40, 20)),
    ("adv_bnn", "paper", "lr", 0.01),
    ("adv_bnn", "paper", "batch_size", 128),
    ("adv_bnn", "paper", "prior_std", 0.05),
    ("adv_bnn", "paper", "steps", 10),
    ("adv_bnn", "paper", "eps", 8 / 256),
    ("hierarchical_vi", None, "kl_weight", 0.1),
    ("hierarchical_vi", None, "init_std", 0.1),
    ("hierarchical_vi", None, "eps", 0.03),
    ("hierarchical_vi", "paper", "stages", (30, 20, 10)),
    ("hierarchical_vi", "paper", "batch_size", 100),
    ("adversarial_sampling", None, "kl_weight", 0.01),
    ("adversarial_sampling", None, "alpha", 0.02),
    ("adversarial_sampling", None, "steps", 5),
    ("adversarial_sampling", None, "adversarial_weight", 0.8),
    ("bal", "paper", "image_steps", 15),
    ("bal", "paper", "weight_steps", 15),
    ("bal", "paper", "chains", 5),
    ("bal", "paper", "temperature", 1e-5),
    ("bal", "gtsrb", "temperature", 1e-7),
    ("bal", "gtsrb", "image_chains", 5),
    ("apd", "paper", "lr", 0.05),
    ("apd", "paper", "weight_decay", 0.001),
    ("apd", "paper", "batch_size", 100),
    ("apd", "paper", "burn_in", 500),
    ("apd", "paper", "gradient_penalty", 10.0),
    ("apd", "paper", "critic_steps", 5),
    ("apd", "paper", "gan_lr", 1e-4),
    ("apd", None, "interval", 20),
    ("rse", None, "first_std", 0.2),
    ("rse", None, "inner_std", 0.1),
]


@pytest.mark.parametrize(("name", "preset", "field", "value"), PUBLISHED)
def test_hyperparameters_are_the_published_ones(name: str, preset: str | None, field: str, value: object) -> None:
    options = {} if preset is None else {"preset": preset}
    assert getattr(advbench.get_defense(name, **options).params, field) == value


def test_pgd_in_training_draws_fresh_weights_at_each_step_and_starts_at_random() -> None:
    """Adv-BNN eq. 3: never one draw for the whole ascent."""
    net = small_net().eval()
    clf = Classifier(net, GaussianPosterior(net, 0.1))
    seen: list[Tensor] = []
    points: list[Tensor] = []

    def draw(seed: int, old: Callable[[int], Mapping[str, Tensor]] = clf.posterior.draw) -> Mapping[str, Tensor]:
        found = old(seed)
        seen.append(torch.cat([each.flatten() for each in found.values()]))
        return found

    clf.posterior.draw = draw  # type: ignore[method-assign]
    handle = net.register_forward_pre_hook(lambda module, args: points.append(args[0].detach().clone()))
    x, y = small_data().batch(slice(4))
    defense = advbench.get_defense("adv_bnn", steps=4, eps=0.1)
    defense.perturb(clf, x, y, torch.Generator().manual_seed(0))  # type: ignore[attr-defined]
    handle.remove()
    assert len(seen) == 4
    assert all(not torch.equal(seen[i], seen[j]) for i in range(4) for j in range(i))
    assert not torch.equal(points[0], x)
    assert float((points[0] - x).abs().max()) <= 0.1 + 1e-6
    still = advbench.get_defense("adv_bnn", steps=1, eps=0.1, random_start=False)
    points.clear()
    handle = net.register_forward_pre_hook(lambda module, args: points.append(args[0].detach().clone()))
    still.perturb(clf, x, y, torch.Generator().manual_seed(0))  # type: ignore[attr-defined]
    handle.remove()
    assert torch.equal(points[0], x)


@pytest.mark.parametrize(("optimizer", "momentum"), [("sgd", 0.0), ("sgd", 0.9), ("adam", 0.9)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_are_those_of_torchs_optimiser(optimizer: str, momentum: float, decay: float) -> None:
    """Three steps on the whole data set in one batch, so that the order has no say."""
    data, net = small_data(12), nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    options = {"stages": (3,), "batch_size": 12, "lr": 0.1, "optimizer": optimizer, "momentum": momentum}
    trained = advbench.get_defense("erm", weight_decay=decay, **options).fit(net, data)
    own, (x, y) = copy.deepcopy(net), data.batch(slice(None))
    expected = (
        torch.optim.SGD(own.parameters(), lr=0.1, momentum=momentum, weight_decay=decay)
        if optimizer == "sgd"
        else torch.optim.Adam(own.parameters(), lr=0.1, weight_decay=decay)
    )
    for _ in range(3):
        expected.zero_grad()
        F.cross_entropy(own(x), y).backward()
        expected.step()
    torch.testing.assert_close(trained.module[1].weight, own[1].weight, atol=1e-5, rtol=1e-4)  # type: ignore[index]


fused_adam = functools.partial(torch.optim.Adam, fused=True)
OPTIMIZERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "adam": (Adam, fused_adam, {"lr": 1e-2}),
    "adam of a GAN": (Adam, fused_adam, {"lr": 1e-3, "betas": (0.5, 0.9)}),
    "sgd": (SGD, torch.optim.SGD, {"lr": 0.1}),
    "sgd with momentum": (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimisers_are_torchs_to_the_bit(name: str) -> None:
    """Also where a parameter has no gradient, a rate changes, and a fresh optimiser goes on from a saved state."""
    own, theirs, settings = OPTIMIZERS[name]

    def made(optimizer: Any, values: list[Tensor]) -> tuple[list[Tensor], Any]:
        params = [value.clone().requires_grad_() for value in values]
        groups = [{"params": params[:2], "weight_decay": 0.1}, {"params": params[2:], "weight_decay": 0.0}]
        return params, optimizer(groups, **settings)

    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(size, generator=generator) for size in ((4, 3), (5,), (), (2, 2))]
    (params, optimizer), (expected, reference) = made(own, start), made(theirs, start)
    for step in range(8):
        if step == 4:
            saved = copy.deepcopy(optimizer.state_dict()["state"])
            params, optimizer = made(own, [param.detach() for param in params])
            optimizer.load_state_dict({"state": saved})
        optimizer.zero_grad()
        reference.zero_grad()
        assert all(param.grad is None for param in params)
        for index, pair in enumerate(zip(params, expected, strict=True)):
            gradient = torch.randn(pair[0].shape, generator=generator)
            if (step, index) not in ((0, 1), (2, 3), (5, 0)):
                pair[0].grad, pair[1].grad = gradient, gradient.clone()
        for each in (optimizer, reference):
            each.param_groups[1]["lr"] = settings["lr"] * 0.1 ** (step // 3)
            each.step()
        assert all(torch.equal(*pair) for pair in zip(params, expected, strict=True))


def test_a_training_does_without_torchs_compiler() -> None:
    code = """
import sys
import advbench
from advbench.testing import small_data, small_net
advbench.get_defense("erm", stages=(1,)).fit(small_net(), small_data())
sys.exit("torch._dynamo" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("saves", [1, 2, 4])
def test_a_method_may_bring_an_optimiser_of_torch(saves: int) -> None:
    class Own(ErmLoss):
        Params = TrainParams
        params: TrainParams

        def begin(self, module: nn.Module, steps: int, count: int, context: TrainContext) -> TrainState:
            state = super().begin(module, steps, count, context)
            state.optimizers["main"] = torch.optim.AdamW(state.clf.posterior.trainable(), lr=1e-2)
            return state

    DefenseConformance().test_resumes_bit_for_bit(Own(stages=(2, 2), batch_size=16), small_net(), small_data(), saves)


def test_weight_decay_leaves_deviations_alone() -> None:
    """Decayed, a log deviation would go to 0 and the deviation to 1."""
    options = {"stages": (60,), "batch_size": 16, "lr": 1e-2, "kl_weight": 0.0}

    def deviation(decay: float) -> float:
        clf = advbench.get_defense("bnn", weight_decay=decay, **options).fit(small_net(), small_data())
        return float(clf.posterior.log_std.exp().mean())  # type: ignore[operator, union-attr]

    assert deviation(1.0) < 1.3 * deviation(0.0)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("erm", {"optimizer": "sgd", "momentum": 0.0, "lr": 1e38}),
        ("sgld", {"lr": 1e30, "burn_in": 0, "interval": 1}),
    ],
)
def test_weights_that_the_last_step_made_infinite_are_an_error(name: str, params: dict[str, object]) -> None:
    data = small_data()
    with pytest.raises(PluginError, match=r"after the last step: expected finite"):
        advbench.get_defense(name, stages=(1,), batch_size=len(data), **params).fit(small_net(), data)


@pytest.mark.parametrize(("name", "passes"), [("pgd_at", 5.0), ("fgsm_at", 2.0), ("erm", 1.0), ("wrm", 16.0)])
def test_passes_of_an_image_in_an_epoch(name: str, passes: float) -> None:
    options = {"steps": 4} if name == "pgd_at" else {}
    assert advbench.get_defense(name, stages=(1,), **options).passes_per_image() == passes


def test_dropout_masks_differ_from_step_to_step() -> None:
    """A module's own noise in training is seeded by the step, not by the training."""

    class Spy(nn.Dropout):
        masks: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            dropped = super().forward(torch.ones_like(x))
            if self.training:
                self.masks.append(dropped)
            return x * dropped

    data = small_data(16)
    net = nn.Sequential(nn.Flatten(), Spy(0.5), nn.Linear(36, 3))
    advbench.get_defense("erm", stages=(3,), batch_size=16).fit(net, data)
    assert len(Spy.masks) == 3
    assert not torch.equal(Spy.masks[0], Spy.masks[1])
    assert not torch.equal(Spy.masks[1], Spy.masks[2])


@pytest.mark.parametrize(("name", "params"), [("erm", {}), ("adv_bnn", {"steps": 2}), ("wrm", {"init_from": None})])
def test_a_smaller_chunk_changes_a_training_by_rounding_alone(name: str, params: dict[str, Any]) -> None:
    data = advbench.load_dataset("digits").train
    data = Data(data.images[:200], data.labels[:200], data.classes, data.name)
    found = []
    for chunk in (None, 50, 7):
        net = advbench.build_architecture("small_cnn", data, seed=0)
        defense = advbench.get_defense(name, stages=(1,), optimizer="sgd", lr=0.05, **params)
        clf = defense.fit(net, data, TrainContext(resources=Resources(chunk=chunk)))
        found.append(torch.cat([tensor.flatten() for tensor in export_classifier(clf)[0].values()]))
    assert not torch.equal(found[0], found[2])
    assert torch.allclose(found[0], found[1], atol=2e-5)
    assert torch.allclose(found[0], found[2], atol=2e-5)


def test_a_step_that_no_chunk_makes_smaller_says_what_did_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    data = advbench.load_dataset("digits").train
    for name, params in (("rse", {}), ("sgld", {"samples": 2, "interval": 1, "burn_in": 1})):
        defense = advbench.get_defense(name, stages=(1,), **params)

        def full(*_: Any) -> Any:
            raise torch.OutOfMemoryError("Tried to allocate 7 GiB")

        monkeypatch.setattr(type(defense), "update", full)
        with pytest.raises(PluginError, match=r"memory of cpu ran out in training step 1, on \d+ images of shape"):
            defense.fit(advbench.build_architecture("small_cnn", data, seed=0), data)
