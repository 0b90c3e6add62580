"""Runs attacks in batches; verifies their input and their examples, and counts their passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from advbench.attacks.ball import distances, within
from advbench.attacks.base import Attack, Goal, Threat
from advbench.attacks.budget import within_budget
from advbench.data.base import check_floating, check_labels
from advbench.errors import InputError, PluginError
from advbench.keys import derive
from advbench.models.classifier import Classifier
from advbench.models.gradient_watch import Passes
from advbench.models.guard import opened, undisturbed
from advbench.progress import OnProgress, Progress

TOLERANCE = 1e-6
BATCH_SIZE = 256


class Earlier(NamedTuple):
    """Examples of the previous, smaller eps of a sweep, and that eps; initially the clean images, and 0."""

    images: Tensor
    eps: float


@dataclass(frozen=True)
class Crafted:
    """Adversarial examples and their cost.

    Attributes:
        images: adversarial examples, with the shape and device of the clean images.
        forward_passes: mean number of forward passes per example.
        backward_passes: mean number of backward passes per example.
        random: True if the attacked classifier is random.
        vanished_gradients: fraction of the image gradients, over all steps, that were exactly zero.
    """

    images: Tensor
    forward_passes: float = 0.0
    backward_passes: float = 0.0
    random: bool = False
    vanished_gradients: float = 0.0

    @classmethod
    def of(cls, images: Tensor, passes: Passes, *, random: bool) -> Crafted:
        """Examples with the mean cost per image of an attack on all of them."""
        share = passes.vanished / passes.gradients if passes.gradients else 0.0
        return cls(images, passes.forward / len(images), passes.backward / len(images), random, share)


def craft(
    attack: Attack,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    seed: int = 0,
    targets: Tensor | None = None,
    stop_early: bool = False,
    nearest: bool = False,
    earlier: Earlier | None = None,
    budget: int | None = None,
    batch_size: int = BATCH_SIZE,
    report: OnProgress = lambda _: None,
) -> Crafted:
    """Run an attack batch by batch and verify its examples.

    Each batch has its own seeds, so its examples depend neither on other batches nor on the global random state. That
    state and the model's modes and gradients are left unchanged.

    Args:
        attack: the attack.
        model: a `Classifier` or any `nn.Module` on [0, 1] images.
        x: images `(count, channels, height, width)`, float32 in [0, 1].
        y: labels `(count,)`, int64.
        threat: norm and eps.
        seed: seed of the attack's random draws and noise.
        targets: target classes `(count,)`; None for an untargeted attack.
        stop_early: allow the attack to stop for images that certainly reached their goal (`Goal`).
        nearest: return the examples of a minimal-norm attack at any distance, without projection onto the threat's
            ball.
        earlier: result at the previous eps of a sweep: images that a smaller eps already broke keep their examples, the
            others are attacked again. Ignored for random classifiers, where a single success proves nothing, for
            minimal-norm attacks, and for aims other than an error.
        budget: maximum number of forward passes per image, on average over a batch; the attack's effort is reduced to
            fit.
        batch_size: number of images that are attacked together and share their draws.
        report: callback with the number of images done; within a batch, as estimated from `Attack.cost`.

    Raises:
        InputError: images, labels, targets, threat or budget are invalid.
        PluginError: the examples violate ball, box, shape, dtype or budget, or the model's output is invalid.
    """
    _check_attackable(attack, x, y, threat, targets)
    _check_settings(attack, x, threat, earlier, budget, batch_size)
    nearest, x = nearest and attack.minimal_norm, x.detach()
    if len(x) == 0 or (threat.eps == 0 and not nearest):
        return Crafted(x.clone())
    clf, classes, _ = opened(model, x, probe=True)
    _check_classes(attack, y, targets, classes)
    earlier = None if clf.stochastic or attack.minimal_norm or attack.aim != "error" else earlier
    attack = attack if budget is None else within_budget(attack, budget - (earlier is not None), random=clf.stochastic)
    goal = Goal.of(y, targets, stop_early=stop_early)
    with clf.isolated() as passes:
        found = x.clone() if earlier is None else earlier.images.clone()
        left = torch.arange(len(x), device=x.device) if earlier is None else _resistant(clf, found, goal, batch_size)
        done = len(x) - len(left)
        for batch, rows in enumerate(torch.split(left, batch_size) if len(left) else ()):
            passes.watch = _within_batch(report, attack.cost(clf.stochastic), len(rows), done, len(x))
            crafted = _craft_batch(attack, clf, x[rows], goal[rows], threat, derive(seed, "attack", batch))
            if attack.minimal_norm and not nearest:
                crafted = within(crafted, x[rows], threat, outward=clf.stochastic)
            found[rows] = crafted
            done += len(rows)
            report(Progress(done, len(x)))
    _check_budget(attack, budget, passes.forward / len(x))
    return Crafted.of(found, passes, random=clf.stochastic)


def craft_on_draws(
    attack: Attack,
    draws: Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    seed: int = 0,
    budget: int | None = None,
    batch_size: int = BATCH_SIZE,
    report: OnProgress = lambda _: None,
) -> Crafted:
    """Like `craft`, on each of several draws of a random classifier, for an adversary who knows the evaluated draw.

    Args:
        attack: the attack.
        draws: frozen draws of the classifier, each deterministic.
        x: images `(count, channels, height, width)`, float32 in [0, 1].
        y: labels `(count,)`, int64.
        threat: norm and eps.
        seed: seed of the attack's random draws and noise.
        budget: maximum number of forward passes per image and draw.
        batch_size: number of images that are attacked together.
        report: callback with the number of images of all draws done, as in `craft`.

    Returns:
        Images `(draws, count, channels, height, width)`; costs are per image and draw.
    """
    found = []
    for k, draw in enumerate(draws):

        def watch(progress: Progress, k: int = k) -> None:
            report(Progress(k * progress.total + progress.step, len(draws) * progress.total))

        how: dict[str, Any] = {"budget": budget, "batch_size": batch_size, "report": watch}
        found.append(craft(attack, draw, x, y, threat, seed=derive(seed, "draw", k), **how))
    forward, backward, vanished = (
        sum(getattr(each, name) for each in found) / len(found)
        for name in ("forward_passes", "backward_passes", "vanished_gradients")
    )
    images = torch.stack([each.images for each in found])
    return Crafted(images, forward, backward, random=False, vanished_gradients=vanished)


@torch.no_grad()
def _resistant(clf: Classifier, images: Tensor, goal: Goal, batch_size: int) -> Tensor:
    """Indices of the images that do not reach the goal, `(count,)`; one pass each."""
    starts = range(0, len(images), batch_size)
    reached = [goal[s : s + batch_size].success(clf(images[s : s + batch_size])) for s in starts]
    return (~torch.cat(reached)).nonzero().squeeze(1)


def _within_batch(
    report: OnProgress, cost: int | None, rows: int, done: int, total: int
) -> Callable[[int], None] | None:
    """Watch of forward passes that reports progress within a batch, in images; None if the attack's cost is unknown."""
    if not cost:
        return None
    passed, shown = 0, 0

    def watch(forward: int) -> None:
        nonlocal passed, shown
        passed += forward
        images = min(rows - 1, passed // cost)  # the batch is done once its examples are verified
        if images > shown:
            shown = images
            report(Progress(done + images, total))

    return watch


def _craft_batch(attack: Attack, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, seed: int) -> Tensor:
    generator = torch.Generator(x.device).manual_seed(derive(seed, "generator"))
    clf.reseed(derive(seed, "draws"))
    with undisturbed(clf, derive(seed, "global"), x.device):
        x_adv = attack.search(clf, x.clone(), replace(goal, rows=goal.rows.clone()), threat, generator)
    clf.passes.check_finite()
    _check_claim(attack, x, x_adv, threat)
    return x_adv.detach()


def _check_attackable(attack: Attack, x: Tensor, y: Tensor, threat: Threat, targets: Tensor | None) -> None:
    name = type(attack).__name__
    if not isinstance(threat, Threat):
        raise InputError(f"threat given to {name}", expected="an advbench.Threat", got=type(threat).__name__)
    check_floating(x, f"images given to {name}")
    if torch.is_inference_mode_enabled():
        remedy = "call it outside torch.inference_mode(); torch.no_grad() is fine"
        raise InputError(f"{name} called in inference mode", expected="a mode in which gradients exist", remedy=remedy)
    for what, classes in (("labels", y), ("targets", targets)):
        if isinstance(classes, Tensor) and classes.device != x.device:
            raise InputError(f"{what} given to {name}", expected=f"the images' device ({x.device})", got=classes.device)
    check_labels(y, len(x), None, f"labels given to {name}")
    if len(y) and int(y.min()) < 0:
        raise InputError(f"labels given to {name}", expected="classes 0 upward", got=int(y.min()))
    attack.check(threat, targeted=targets is not None)


def _check_settings(
    attack: Attack, x: Tensor, threat: Threat, earlier: Earlier | None, budget: int | None, batch_size: int
) -> None:
    name = type(attack).__name__
    for what, number in (("budget", 1 if budget is None else budget), ("batch_size", batch_size)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise InputError(f"{what} given to {name}", expected="a whole number >= 1", got=number)
    if earlier is None:
        return
    images = earlier.images
    if not 0 <= earlier.eps <= threat.eps:
        raise InputError(f"previous eps in a sweep of {name}", expected=f"0 to {threat.eps:.6g}", got=earlier.eps)
    if (images.shape, images.dtype, images.device) != (x.shape, x.dtype, x.device):
        raise InputError(
            f"previous examples in a sweep of {name}",
            expected=f"{x.dtype} {tuple(x.shape)} on {x.device}",
            got=f"{images.dtype} {tuple(images.shape)} on {images.device}",
        )
    within_ball = float(distances(images, x, Threat(threat.norm, earlier.eps)).max()) if len(x) else 0.0
    if within_ball > earlier.eps + TOLERANCE:
        raise InputError(
            f"previous examples in a sweep of {name}", expected=f"in a ball of {earlier.eps:.6g}", got=within_ball
        )


def _check_budget(attack: Attack, budget: int | None, made: float) -> None:
    if budget is not None and made > budget:
        raise PluginError(
            f"attack {type(attack).__name__} exceeded its budget",
            expected=f"at most {budget} forward passes per image",
            got=f"{made:.6g}",
            remedy="its method `cost` must return an upper bound",
        )


def _check_classes(attack: Attack, y: Tensor, targets: Tensor | None, classes: int) -> None:
    name = type(attack).__name__
    if classes < 2:
        raise InputError("classes of the model under attack", expected="at least 2", got=classes)
    check_labels(y, len(y), classes, f"labels given to {name}")
    if targets is None:
        return
    check_labels(targets, len(y), classes, f"targets given to {name}")
    same = (targets == y).nonzero()
    if len(same):
        raise InputError(
            f"targets given to {name}",
            expected="a class other than the label for each image",
            got=f"class {int(y[same[0, 0]])} for image {int(same[0, 0])}, which is its label",
        )


def _check_claim(attack: Attack, x: Tensor, x_adv: Tensor, threat: Threat) -> None:
    name = type(attack).__name__
    if not isinstance(x_adv, Tensor) or x_adv.shape != x.shape or x_adv.dtype != x.dtype:
        got = f"{x_adv.dtype} {tuple(x_adv.shape)}" if isinstance(x_adv, Tensor) else type(x_adv).__name__
        raise PluginError(f"attack {name} returned", expected=f"{x.dtype} {tuple(x.shape)}", got=got)
    if not x_adv.isfinite().all():
        raise PluginError(f"attack {name} returned", expected="finite images", got="NaN or infinity")
    excess = max(float(-x_adv.min()), float(x_adv.max()) - 1)
    if excess > TOLERANCE:
        raise PluginError(f"attack {name} left the box [0, 1]", got=f"pixels outside by {excess:.3g}")
    if attack.minimal_norm:
        return
    distance = float(distances(x_adv, x, threat).max())
    if distance > threat.eps + TOLERANCE:
        raise PluginError(
            f"attack {name} left the {threat.norm} ball",
            expected=f"a distance of at most eps {threat.eps:.6g}",
            got=f"{distance:.8g}",
        )
