"""Per-image worst case of several attacks, selected with draws independent of the evaluation."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

import advbench
from advbench import attacks
from advbench.attacks import Attack, Field, Goal, Kept, Norm, Threat, exact, within
from advbench.errors import ModelWarning, NoGradientError
from advbench.models import Classifier

# Cheap attacks first: on a deterministic classifier, broken images are not passed to the next attack.
DETERMINISTIC = ("pgd", "apgd", "alma", "fab", "apgd@targeted", "square")
RANDOM = ("eot_pgd", "apgd@random", "apgd@random_targeted", "square@random")
DEFAULT_PARAMS: dict[str, dict[str, Any]] = {
    "pgd": {"steps": 10},
    "fab": {"early_stop": True},
    "apgd@targeted": {"loss": "dlr_targeted"},
    "square": {"queries": 5000},
    "alma": {"steps": 100, "targets": 7, "early_stop": True},
    "apgd@random": {"loss": "margin", "restarts": 2},
    "apgd@random_targeted": {"loss": "dlr_targeted", "targets": 3, "steps": 25},
    "square@random": {"queries": 150},
}
CONFIRMING = 20  # fresh draws to confirm that an image of a random classifier is broken


class WorstCase(Attack):
    """Several attacks, of which each image keeps the example of largest mean margin over separate draws.

    On a deterministic classifier, an image that one attack broke is not passed to the next. On a random one, a minimum
    over the outcomes of the attacks would report a robust model as broken: a model that is right with probability 0.95
    on any input would be wrong in one of many outcomes. Here examples are selected with one set of draws and evaluated
    with another, so selection by chance gains nothing. An image is finished only if fresh draws confirm that it is
    broken: over 20 draws, taken after its example was selected, the runner-up's probability exceeds the label's by a
    one-sided t test at level 0.001 (or over all members of a posterior with few).

    By default the attacks take at most 7,800 passes per image on a deterministic classifier (AutoAttack standard:
    7,800), most of them on images that resist all attacks, and at most 4,000 on a random one (AutoAttack rand: 4,000);
    a pass for a gradient counts as one. If the classifier has no gradient, attacks that need one are skipped with a
    warning.
    """

    version = "4"

    class Params(attacks.Params):
        """Hyperparameters of the worst case."""

        attacks: tuple[str, ...] = Field(
            default=(),
            description="attacks in order, each NAME or NAME@LABEL; attacks without support for the norm are skipped; "
            f"by default {', '.join(DETERMINISTIC)} on a deterministic classifier and {', '.join(RANDOM)} on "
            f"a random one",
        )
        params: dict[str, dict[str, Any]] = Field(
            default={}, description="hyperparameters by name of the attack; they replace those of default attacks"
        )
        draws: int = Field(
            default=50, ge=1, description="number of draws for the selection of examples of a random classifier"
        )

    targeted = True
    params: Params

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        chosen = self.params.params if self.params.attacks else {**DEFAULT_PARAMS, **self.params.params}
        repeated = sorted({name for name in self.params.attacks if self.params.attacks.count(name) > 1})
        if repeated:
            expected = "each name once; use NAME@LABEL for several settings of an attack"
            raise advbench.InputError("attacks of the worst case", expected=expected, got=", ".join(repeated))
        names = self.params.attacks or DETERMINISTIC + RANDOM
        for name in chosen.keys() - set(names):
            raise advbench.InputError("params of the worst case", expected=f"names among {names}", got=repr(name))
        self._parts = {name: advbench.get_attack(name.partition("@")[0], **chosen.get(name, {})) for name in names}

    @property
    def parts(self) -> Mapping[str, Attack]:
        """The component attacks."""
        return self._parts

    def chosen(self, *, random: bool) -> list[Attack]:
        """Attacks on a random or on a deterministic classifier, in order."""
        names = self.params.attacks or (RANDOM if random else DETERMINISTIC)
        return [self._parts[name] for name in names]

    def with_parts(self, parts: Mapping[str, Attack]) -> Self:
        """The same attack with other component attacks."""
        params = {name: part.params.model_dump() for name, part in parts.items()}
        return type(self)(**{**self.params.model_dump(), "params": params})

    def cost(self, random: bool) -> int | None:
        """Sum of the costs of the attacks, plus passes for selection; None if an attack gives none."""
        costs = [attack.cost(random) for attack in self.chosen(random=random)]
        if None in costs:
            return None
        choosing = (1 + len(costs)) * self.params.draws + len(costs) * CONFIRMING if random else 1 + len(costs)
        return sum(filter(None, costs)) + choosing

    def check(self, threat: Threat, *, targeted: bool = False) -> None:
        """Check that at least one attack supports the threat."""
        if not any(self._fits(attack, threat.norm, targeted=targeted) for attack in self._parts.values()):
            next(iter(self._parts.values())).check(threat, targeted=targeted)

    @staticmethod
    def _fits(attack: Attack, norm: Norm, *, targeted: bool) -> bool:
        try:
            attack.check(Threat(norm, 0.0), targeted=targeted)
        except advbench.InputError:
            return False
        return True

    def run(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        """Run each attack on the images that are not broken yet."""
        kept = Kept(clf, goal, self.params.draws)
        kept.offer(x)
        failures: list[NoGradientError] = []
        left = torch.arange(len(x), device=x.device)
        fitting = [a for a in self.chosen(random=clf.stochastic) if self._fits(a, threat.norm, targeted=goal.targeted)]
        for attack in fitting:
            left = left[~_broken(clf, kept, left, goal[left])]
            if len(left) == 0:
                break
            try:
                found = attack.search(clf, x[left], goal[left], threat, generator)
            except NoGradientError as error:
                failures.append(error)
                warnings.warn(ModelWarning(f"worst_case skipped {type(attack).__name__}: {error}"), stacklevel=2)
                continue
            if attack.minimal_norm:
                found = within(found, x[left], threat, outward=clf.stochastic)
            kept.offer(found, left)
        if failures and len(failures) == len(fitting):
            raise failures[0]
        return kept.images


@torch.no_grad()
def _broken(clf: Classifier, kept: Kept, rows: Tensor, goal: Goal) -> Tensor:
    """Mask of the kept images that certainly fool the classifier, `(batch,)`, bool; see the class docstring.

    On a random classifier, only images that fool the draws of their selection are tested again.
    """
    assert kept.margins is not None, "offer must be called first"
    broken = kept.margins[rows] > 0
    if exact(clf, len(kept)) or not bool(broken.any()):
        return broken
    hopeful = broken.nonzero().squeeze(1)
    images = kept.images[rows][hopeful]
    # All members, where they are few; otherwise independent draws: `fresh_seeds` would give antithetic pairs.
    seeds = clf.fresh_seeds(CONFIRMING) if exact(clf, CONFIRMING) else [None] * CONFIRMING
    logits = torch.stack([clf.at(draw, images) for draw in map(clf.draw, seeds)])
    broken[hopeful] = attacks.certainly_reached(clf, goal[hopeful], logits)
    return broken
