"""Every attack against linear and quadratic models, where the nearest adversarial example is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from advbench_attacks.fab import onto_plane
from scipy import optimize
from torch import Tensor, nn

import advbench
from advbench import attacks
from advbench.attacks.ball import distances, within
from advbench.attacks.base import Goal, Threat
from advbench.attacks.craft import craft
from advbench.attacks.selection import Kept
from advbench.models.classifier import Classifier
from advbench.models.posterior import GaussianPosterior

# name, hyperparameters, norms, by how much its success may come late (relative to the exact distance)
BALL_ATTACKS = [
    ("ifgsm", {"steps": 40, "loss": "margin"}, 0.1),
    ("pgd", {"steps": 40, "restarts": 3, "loss": "margin"}, 0.03),
    ("eot_pgd", {"steps": 40, "restarts": 3, "loss": "margin"}, 0.03),
    ("apgd", {"restarts": 3, "loss": "margin"}, 0.01),
    ("apgd", {"restarts": 3, "loss": "dlr"}, 0.01),
    ("apgd", {"loss": "dlr_targeted"}, 0.01),
    ("gray_box", {"params": {"steps": 40, "restarts": 3, "loss": "margin"}}, 0.03),
    ("worst_case", {"params": {"apgd@targeted": {"loss": "margin"}, "square": {"queries": 20}}}, 0.01),
]
# With the loss of more than two classes its largest value in the ball may lie where no other class wins.
TWO_CLASS_ATTACKS = [("pgd", {}, 0.01), ("eot_pgd", {}, 0.01), ("apgd", {}, 0.01), ("cw_one_step", {}, 1e-4)]
NEAREST_ATTACKS = [("fmn", {}, "linf", 0.01), ("fmn", {}, "l2", 0.01), ("cw", {}, "l2", 0.03)]
NEAREST_ATTACKS += [("fab", {"steps": 30}, "linf", 0.01), ("fab", {"steps": 30, "restarts": 2}, "l2", 0.01)]
NEAREST_ATTACKS += [("alma", {}, "l2", 0.03), ("alma", {"steps": 300, "targets": 0}, "l2", 0.03)]


def images(count: int, pixels: int = 16, seed: int = 1) -> Tensor:
    """Images far enough inside the box that a small ball does not meet it."""
    side = int(pixels**0.5)
    return 0.4 + 0.2 * torch.rand((count, 1, side, side), generator=torch.Generator().manual_seed(seed))


def exact_distance(model: Any, x: Tensor, y: int, target: int | None, norm: str) -> float:
    """The distance of an image to the nearest one of a linear model's goal, by linear or quadratic programming."""
    weight, bias = model.weight.detach().double().numpy(), model.bias.detach().double().numpy()
    flat = x.flatten().double().numpy()
    goals = [target] if target is not None else [c for c in range(len(bias)) if c != y]
    found = []
    for goal in goals:
        # An untargeted attack needs the goal's logit above the label's alone, a targeted one above all.
        rivals = [c for c in range(len(bias)) if c != goal] if target is not None else [y]
        slopes = np.stack([weight[goal] - weight[c] for c in rivals])
        gaps = np.array([(weight[c] - weight[goal]) @ flat + bias[c] - bias[goal] for c in rivals])
        if norm == "linf":
            cost = np.append(np.zeros(len(flat)), 1.0)
            ones, eye = np.ones((len(flat), 1)), np.eye(len(flat))
            upper = np.block([[-slopes, np.zeros((len(rivals), 1))], [eye, -ones], [-eye, -ones]])
            limits = np.concatenate([-gaps, np.zeros(2 * len(flat))])
            found.append(optimize.linprog(cost, upper, limits, bounds=(None, None)).fun)
        else:
            beyond = optimize.LinearConstraint(slopes, lb=gaps)
            start = np.full(len(flat), 1e-3)
            nearest = optimize.minimize(lambda d: d @ d, start, jac=lambda d: 2 * d, constraints=beyond, tol=1e-12)
            found.append(float(np.linalg.norm(nearest.x)))
    return max(0.0, min(found))


def labels_and_targets(model: nn.Module, x: Tensor, targeted: bool) -> tuple[Tensor, Tensor | None]:
    """What the model says, and the class that it finds second likeliest."""
    order = model(x).argsort(dim=1, descending=True)
    return order[:, 0], order[:, 1] if targeted else None


def fools(model: nn.Module, x: Tensor, y: Tensor, targets: Tensor | None) -> Tensor:
    predicted = model(x).argmax(1)
    return predicted == targets if targets is not None else predicted != y


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(("count", "classes"), [(1, 2), (3, 3), (8, 7)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("name", "params", "late"), BALL_ATTACKS)
def test_ball_attacks_succeed_on_a_linear_model_from_the_exact_distance_on(
    name: str,
    params: dict[str, Any],
    late: float,
    norm: Any,
    count: int,
    classes: int,
    targeted: bool,
    linear: Callable[..., nn.Module],
) -> None:
    model, x = linear(classes=classes), images(count)
    y, targets = labels_and_targets(model, x, targeted)
    attack = advbench.get_attack(name, **params)
    for i in range(min(count, 2) if name == "worst_case" else count):
        one = slice(i, i + 1)
        aim = None if targets is None else targets[one]
        exact = exact_distance(model, x[i], int(y[i]), None if aim is None else int(aim), norm)
        for factor, fooled in ((1 - 1e-3, False), (1 + late, True)):
            x_adv = attack(model, x[one], y[one], Threat(norm, exact * factor), targets=aim)
            assert bool(fools(model, x_adv, y[one], aim)) == fooled, (i, exact, factor)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("name", "params", "late"), TWO_CLASS_ATTACKS)
def test_ball_attacks_on_two_classes(
    name: str, params: dict[str, Any], late: float, norm: Any, targeted: bool, linear: Callable[..., nn.Module]
) -> None:
    model, x = linear(classes=2), images(8)
    y, targets = labels_and_targets(model, x, targeted)
    attack = advbench.get_attack(name, **params)
    exact = torch.tensor([exact_distance(model, x[i], int(y[i]), None, norm) for i in range(8)])
    for factor in (1 - 1e-3, 1 + late):
        for eps in exact.tolist():  # in a batch, those whose boundary is nearer are fooled
            x_adv = attack(model, x, y, Threat(norm, eps * factor), targets=targets)
            assert bool((fools(model, x_adv, y, targets) == (exact < eps * factor)).all())


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(("count", "classes"), [(1, 2), (3, 3), (8, 7)])
@pytest.mark.parametrize(("name", "params", "norm", "late"), NEAREST_ATTACKS)
def test_minimal_norm_attacks_find_the_exact_distance_of_a_linear_model(
    name: str,
    params: dict[str, Any],
    norm: Any,
    late: float,
    count: int,
    classes: int,
    targeted: bool,
    linear: Callable[..., nn.Module],
) -> None:
    model, x = linear(classes=classes), images(count)
    y, targets = labels_and_targets(model, x, targeted)
    threat = Threat(norm, 1.0)
    found = craft(advbench.get_attack(name, **params), model, x, y, threat, targets=targets, nearest=True).images
    assert bool(fools(model, found, y, targets).all())
    for i, distance in enumerate(distances(found, x, threat).tolist()):
        exact = exact_distance(model, x[i], int(y[i]), None if targets is None else int(targets[i]), norm)
        assert exact * (1 - 1e-4) <= distance <= exact * (1 + late), (i, exact, distance)


class Bowl(nn.Module):
    """Class 1 outside a sphere around a corner region of the box, class 0 inside; every pixel is off its middle."""

    def __init__(self, radius: float = 1.8, middle: float = 0.1) -> None:
        super().__init__()
        self.square = nn.Parameter(torch.tensor(radius**2))
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        rise = (x.flatten(1) - self.middle).square().sum(1) - self.square
        return torch.stack([-rise, rise], 1)

    def exact(self, x: Tensor, norm: str) -> Tensor:
        offset = (x - self.middle).flatten(1).abs().double()
        if norm == "l2":
            return self.square.detach().double().sqrt() - offset.norm(dim=1)
        total, n = offset.sum(1), offset.shape[1]  # sum (|d_i| + t)^2 = radius^2
        lack = offset.square().sum(1) - self.square.detach().double()
        return (-total + (total.square() - n * lack).sqrt()) / n


@pytest.mark.parametrize(("name", "params", "norm", "late"), NEAREST_ATTACKS)
def test_minimal_norm_attacks_find_the_exact_distance_of_a_quadratic(
    name: str, params: dict[str, Any], norm: Any, late: float
) -> None:
    model, x = Bowl(), images(8)
    y, threat = torch.zeros(8, dtype=torch.int64), Threat(norm, 1.0)
    found = distances(craft(advbench.get_attack(name, **params), model, x, y, threat, nearest=True).images, x, threat)
    exact = model.exact(x, norm)
    assert bool((found >= exact * (1 - 1e-4)).all())
    assert bool((found <= exact * (1 + late)).all()), found / exact


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(("name", "params", "late"), BALL_ATTACKS)
def test_ball_attacks_succeed_on_a_quadratic_from_the_exact_distance_on(
    name: str, params: dict[str, Any], late: float, norm: Any
) -> None:
    model, x = Bowl(), images(8)
    y, attack = torch.zeros(8, dtype=torch.int64), advbench.get_attack(name, **params)
    for i, exact in enumerate(model.exact(x, norm).tolist()):
        for factor, fooled in ((1 - 1e-3, False), (1 + late, True)):
            x_adv = attack(model, x[i : i + 1], y[:1], Threat(norm, exact * factor))
            assert bool(model(x_adv).argmax(1) != 0) == fooled, (i, exact, factor)


def distances_in_the_box(model: Any, x: Tensor, y: Tensor, norm: Any) -> Tensor:
    """Of each image from the nearest one of the box that a linear model takes for another class, `(count,)`."""
    nearest = torch.full((len(x),), torch.inf, dtype=torch.float64)
    flat, weight, bias = x.flatten(1).double(), model.weight.detach().double(), model.bias.detach().double()
    for other in range(len(bias)):
        normal, offset = weight[other] - weight[y], bias[y] - bias[other]
        change = onto_plane(flat, normal, offset, norm)
        there = (((flat + change) * normal).sum(1) - offset).abs() < 1e-9
        length = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
        nearest = torch.where(there & (y != other), torch.minimum(nearest, length), nearest)
    return nearest


@pytest.mark.parametrize(
    ("name", "params", "norms"),
    [
        ("apgd", {"loss": "dlr_targeted", "steps": 50}, ("linf", "l2")),
        ("apgd", {"loss": "margin"}, ("l2",)),
        ("fab", {"steps": 30}, ("linf", "l2")),
        ("alma", {"targets": 9, "early_stop": True}, ("l2",)),
        ("worst_case", {"params": {"square": {"queries": 2}}}, ("linf",)),
    ],
)
def test_the_accuracy_of_a_linear_model_of_ten_classes_is_the_true_one(
    name: str, params: dict[str, Any], norms: tuple[Any, ...], linear: Callable[..., nn.Module]
) -> None:
    """Its images fill the box; ascent of cross-entropy, towards no class, leaves one or two images in a hundred."""
    model = linear(classes=10, pixels=64, seed=3)
    x = torch.rand((200, 1, 8, 8), generator=torch.Generator().manual_seed(3))
    y, attack = model(x).argmax(1), advbench.get_attack(name, **params)
    for norm in norms:
        exact = distances_in_the_box(model, x, y, norm)
        ordered = exact.sort().values
        threat = Threat(norm, float(ordered[107] + ordered[108]) / 2)
        assert float((exact > threat.eps).double().mean()) == pytest.approx(0.46)
        x_adv = attack(model, x, y, threat)
        assert float((model(x_adv).argmax(1) == y).double().mean()) == pytest.approx(0.46, abs=0.001), norm


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_breaks_a_linear_model_a_little_beyond_the_exact_distance(
    norm: Any, linear: Callable[..., nn.Module]
) -> None:
    model, x = linear(classes=3), images(4)
    y, _ = labels_and_targets(model, x, False)
    attack = advbench.get_attack("square", queries=1500)
    for i in range(4):
        exact = exact_distance(model, x[i], int(y[i]), None, norm)
        for factor, fooled in ((0.999, False), (1.05 if norm == "linf" else 1.6, True)):
            x_adv = attack(model, x[i : i + 1], y[i : i + 1], Threat(norm, exact * factor))
            assert bool(model(x_adv).argmax(1) != y[i]) == fooled, (i, factor)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("seed", range(20))
def test_the_nearest_point_of_a_plane_inside_the_box_is_that_of_a_solver(norm: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 9))
    point, normal = rng.random(count), rng.standard_normal(count)
    if seed % 3 == 0:
        point = point.round()
    if seed % 4 == 0:
        normal[0] = 0.0
    offset = normal @ rng.random(count)
    change = onto_plane(*map(torch.tensor, (point[None], normal[None], [offset])), norm)[0].numpy()
    assert normal @ (point + change) == pytest.approx(offset, abs=1e-9)
    assert ((point + change >= -1e-12) & (point + change <= 1 + 1e-12)).all()
    if norm == "linf":
        eye, ones = np.eye(count), np.ones((count, 1))
        upper = np.block([[eye, -ones], [-eye, -ones]])
        limits = [*zip(-point, 1 - point, strict=True), (0, None)]
        cost, plane = np.append(np.zeros(count), 1.0), np.append(normal, 0.0)[None]
        solved = optimize.linprog(cost, upper, np.zeros(2 * count), plane, [offset - normal @ point], bounds=limits)
        assert abs(change).max() == pytest.approx(solved.fun, abs=1e-8)
    else:
        plane = optimize.LinearConstraint(normal, offset - normal @ point, offset - normal @ point)
        box = optimize.Bounds(-point, 1 - point)
        start = rng.random(count) - point
        solved = optimize.minimize(
            lambda d: d @ d, start, jac=lambda d: 2 * d, bounds=box, constraints=plane, method="SLSQP", tol=1e-14
        )
        np.testing.assert_allclose(change, solved.x, atol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_plane_beyond_the_box_is_answered_by_the_corner_nearest_to_it(norm: Any) -> None:
    point, normal = torch.tensor([[0.2, 0.5, 1.0]]), torch.tensor([[1.0, -2.0, 0.0]])
    change = onto_plane(point, normal, torch.tensor([50.0]), norm)
    torch.testing.assert_close(point + change, torch.tensor([[1.0, 0.0, 1.0]]))
    assert torch.equal(onto_plane(point, torch.zeros(1, 3), torch.tensor([1.0]), norm), torch.zeros(1, 3))


def test_fab_that_stops_early_leaves_what_is_near_enough(linear: Callable[..., nn.Module]) -> None:
    model, x = linear(classes=7), images(8)
    y, _ = labels_and_targets(model, x, False)
    exact = torch.tensor([exact_distance(model, x[i], int(y[i]), None, "l2") for i in range(8)])
    threat = Threat("l2", 1.01 * float(exact.median()))
    whole = craft(advbench.get_attack("fab", steps=10), model, x, y, threat)
    early = craft(advbench.get_attack("fab", steps=10, early_stop=True), model, x, y, threat, stop_early=True)
    assert early.forward_passes < 0.8 * whole.forward_passes
    assert torch.equal(fools(model, early.images, y, None), fools(model, whole.images, y, None))
    assert bool((fools(model, early.images, y, None) == (exact <= threat.eps)).all())


def test_what_is_wrong_as_it_is_has_distance_0(linear: Callable[..., nn.Module]) -> None:
    model, x = linear(classes=3), images(8)
    wrong = (model(x).argmax(1) + 1) % 3
    for name, _, norm, _ in NEAREST_ATTACKS:
        found = craft(advbench.get_attack(name), model, x, wrong, Threat(norm, 1.0), nearest=True).images
        assert torch.equal(found, x), name


def test_cw_searches_each_image_apart(linear: Callable[..., nn.Module]) -> None:
    """An image's example does not depend on how hard its neighbours are."""
    model, x = linear(classes=3), images(8)
    y, _ = labels_and_targets(model, x, False)
    attack = advbench.get_attack("cw")
    together = craft(attack, model, x, y, Threat("l2", 1.0), nearest=True).images
    for i in range(8):
        alone = craft(attack, model, x[i : i + 1], y[i : i + 1], Threat("l2", 1.0), nearest=True).images
        torch.testing.assert_close(alone[0], together[i], atol=1e-4, rtol=0)


def test_cw_reaches_the_confidence_asked_for(linear: Callable[..., nn.Module]) -> None:
    model, x = linear(classes=3), images(8)
    y, _ = labels_and_targets(model, x, False)
    found = craft(advbench.get_attack("cw", confidence=0.5), model, x, y, Threat("l2", 1.0), nearest=True).images
    assert bool((attacks.margin(model(found), y) > 0.5).all())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_within_moves_into_the_ball_and_leaves_what_is_inside(norm: Any) -> None:
    x, threat = images(8), Threat(norm, 0.1)
    away = torch.linspace(0.001, 0.3, 8).view(-1, 1, 1, 1) * torch.ones_like(x)
    moved = within((x + away).clamp(0, 1), x, threat)
    far = distances((x + away).clamp(0, 1), x, threat) > 0.1
    assert bool(far.any())
    assert not bool(far.all())
    assert torch.equal(moved[~far], (x + away).clamp(0, 1)[~far])
    assert bool((distances(moved, x, threat) <= 0.1 + 1e-6).all())
    torch.testing.assert_close(
        distances(moved[far], x[far], threat), torch.full((int(far.sum()),), 0.1).double(), atol=1e-6, rtol=0
    )


def test_targets_are_checked(linear: Callable[..., nn.Module]) -> None:
    model, x = linear(classes=3), images(4)
    y = torch.tensor([0, 1, 2, 0])
    pgd = advbench.get_attack("pgd")
    with pytest.raises(advbench.InputError, match="class 2 for image 2, which is its label"):
        pgd(model, x, y, Threat("linf", 0.1), targets=torch.tensor([1, 2, 2, 1]))
    with pytest.raises(advbench.InputError, match=r"classes 0\.\.2"):
        pgd(model, x, y, Threat("linf", 0.1), targets=torch.tensor([1, 2, 3, 1]))
    with pytest.raises(advbench.InputError, match="untargeted"):
        advbench.get_attack("none")(model, x, y, Threat("linf", 0.1), targets=(y + 1) % 3)


def test_shorten_looks_beyond_what_does_not_fool() -> None:
    """Found by lucky draws at a share of the way, the boundary is at 1.3 of it."""
    model, x = Bowl(), images(4)
    y = torch.zeros(4, dtype=torch.int64)
    exact = model.exact(x, "l2").view(-1, 1, 1, 1).float()
    away = (x - model.middle) / (x - model.middle).flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    kept = Kept(Classifier(model), Goal(y))
    for share in (1 / 1.3, 1.0, 1.7):
        points = attacks.shorten(kept, x, x + share * exact * away)
        torch.testing.assert_close((points - x).flatten(1).norm(dim=1), exact.flatten(), atol=1e-3, rtol=2e-3)
        assert bool((model(points).argmax(1) == 1).all())
    assert torch.equal(attacks.shorten(kept, x, x), x)


def random_linear(pixels: int = 64) -> tuple[Classifier, Tensor, Tensor]:
    """A random classifier that is close to linear, images, and what its ensemble says of them."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 10))
    side = int(pixels**0.5)
    x = torch.rand((128, 1, side, side), generator=torch.Generator().manual_seed(1))
    clf = Classifier(net, GaussianPosterior(net, 0.1)).requires_grad_(False)
    return clf, x, clf.reseed(5).draws(x, 200).softmax(-1).mean(0).argmax(1)


@pytest.mark.parametrize(
    ("name", "params", "norm", "eps", "slack"),
    [
        ("fmn", {}, "linf", 0.1, 0.05),
        ("fmn", {}, "l2", 0.5, 0.05),
        ("cw", {}, "l2", 0.5, 0.2),
        ("alma", {"steps": 40}, "l2", 0.5, 0.2),
        ("fab", {"targets": 1}, "linf", 0.1, 0.05),
        ("fab", {"targets": 1}, "l2", 0.5, 0.0),
    ],
)
def test_minimal_norm_attacks_use_up_the_ball_of_a_random_classifier(
    name: str, params: dict[str, Any], norm: Any, eps: float, slack: float
) -> None:
    """Its nearest example is wrong as often as right; EOT-PGD, which has the whole ball, is the measure."""
    clf, x, y = random_linear()
    threat = Threat(norm, eps)

    def accuracy(attack: str, **params: Any) -> float:
        return advbench.evaluate(clf, advbench.get_attack(attack, **params)(clf, x, y, threat), y, 100, seed=9).accuracy

    assert accuracy(name, **params) <= accuracy("eot_pgd") + slack < 0.9


@pytest.mark.parametrize("params", [{}, {"confidence": 0.5}])
def test_cw_moves_every_image_of_a_random_classifier(params: dict[str, Any]) -> None:
    clf, x, y = random_linear()
    attack = advbench.get_attack("cw", steps=50, search_steps=6, **params)
    found = craft(attack, clf, x[:32], y[:32], Threat("l2", 1.0), nearest=True).images
    assert bool((found != x[:32]).flatten(1).any(1).all())


@pytest.mark.parametrize("name", ["fmn", "cw", "fab", "alma"])
def test_images_at_the_corners_of_the_box_are_broken_too(name: str) -> None:
    """Like a handwritten digit's: a pixel on a face can move one way only, and tanh has no slope there."""
    generator = torch.Generator().manual_seed(1)
    x = (torch.rand((32, 1, 28, 28), generator=generator) < 0.2).float()
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    y = model(x).argmax(1)
    found = craft(advbench.get_attack(name), model, x, y, Threat("l2", 1.0), nearest=True).images
    assert bool((model(found).argmax(1) != y).all())


@pytest.mark.parametrize("name", ["pgd", "apgd", "fmn", "fab", "alma", "cw", "square"])
def test_an_image_on_the_boundary_is_pushed_over_it(name: str) -> None:
    weight = torch.randn(16, generator=torch.Generator().manual_seed(0))
    model, y = Tie(weight), torch.tensor([0, 1, 0, 1])
    x_adv = advbench.get_attack(name)(model, torch.full((4, 1, 4, 4), 0.5), y, Threat("l2", 0.3))
    assert bool((model(x_adv).argmax(1) != y).all())


class Tie(nn.Module):
    """Two classes with equal logits for a grey image."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        rise = (x.flatten(1) - 0.5) @ self.weight
        return torch.stack([rise, -rise], 1)


class Mean(nn.Module):
    """Brightness against a threshold: its gradient is one number, expanded to all pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(5.0))

    def forward(self, x: Tensor) -> Tensor:
        rise = self.scale * (x.flatten(1).sum(1) / x[0].numel() - 0.5)
        return torch.stack([-rise, rise], 1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ["fgsm", "ifgsm", "pgd", "eot_pgd", "apgd", "cw_one_step", "fmn", "gray_box"])
def test_gradients_that_share_memory_are_no_obstacle(name: str, norm: Any) -> None:
    x, y = torch.full((3, 1, 4, 4), 0.55), torch.ones(3, dtype=torch.int64)
    x_adv = advbench.get_attack(name)(Mean(), x, y, Threat(norm, 0.1 if norm == "linf" else 0.4))
    assert bool((Mean()(x_adv).argmax(1) == 0).all())
