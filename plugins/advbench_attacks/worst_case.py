"""The worst of several attacks for each image, chosen by draws that do not judge."""

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

# The cheap ones first: on a deterministic classifier an image that one broke is not given to the next.
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
CONFIRMING = 20  # fresh draws that confirm that an image of a random classifier is broken


class WorstCase(Attack):
    """Several attacks; each image keeps the example of largest mean margin over draws of the attack's own.

    On a deterministic classifier an image that one attack broke is not given to the next. On a random one a minimum
    over the attacks' verdicts would report a robust model as broken: one that is right with probability 0.95 whatever
    the input would be wrong under one of many verdicts. Here examples are chosen on one set of draws and judged on
    another, so the choice of a lucky one buys nothing; and an image is left alone only where fresh draws confirm that
    it is broken: over 20 of them, drawn after its example was chosen, the runner-up's probability exceeds the label's
    by a one-sided t test at level 0.001 (or over all members, where a posterior has few).

    By default an image passes at most 7,800 times on a deterministic classifier (AutoAttack standard: 7,800), most of
    them where it withstands everything, and at most 4,000 times on a random one (AutoAttack rand: 4,000); a pass for
    a gradient counts as one. What needs a gradient is left out, with a warning, where the classifier lets none
    through.
    """

    version = "3"

    class Params(attacks.Params):
        """Hyperparameters of the worst case."""

        attacks: tuple[str, ...] = Field(
            default=(),
            description="attacks in their order, each NAME or NAME@LABEL; those that lack the norm are left out; by "
            f"default {', '.join(DETERMINISTIC)} on a deterministic classifier and {', '.join(RANDOM)} on a random one",
        )
        params: dict[str, dict[str, Any]] = Field(
            default={}, description="hyperparameters of each, by its name; of the default attacks in place of their own"
        )
        draws: int = Field(
            default=50, ge=1, description="draws on which the examples of a random classifier are chosen"
        )

    targeted = True
    params: Params

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        chosen = self.params.params if self.params.attacks else {**DEFAULT_PARAMS, **self.params.params}
        repeated = sorted({name for name in self.params.attacks if self.params.attacks.count(name) > 1})
        if repeated:
            expected = "each name once; NAME@LABEL has one attack several times"
            raise advbench.InputError("attacks of the worst case", expected=expected, got=", ".join(repeated))
        names = self.params.attacks or DETERMINISTIC + RANDOM
        for name in chosen.keys() - set(names):
            raise advbench.InputError("params of the worst case", expected=f"names among {names}", got=repr(name))
        self._parts = {name: advbench.get_attack(name.partition("@")[0], **chosen.get(name, {})) for name in names}

    @property
    def parts(self) -> Mapping[str, Attack]:
        """The attacks."""
        return self._parts

    def chosen(self, *, random: bool) -> list[Attack]:
        """The attacks that are run on a random or on a deterministic classifier, in their order."""
        names = self.params.attacks or (RANDOM if random else DETERMINISTIC)
        return [self._parts[name] for name in names]

    def with_parts(self, parts: Mapping[str, Attack]) -> Self:
        """With those attacks."""
        params = {name: part.params.model_dump() for name, part in parts.items()}
        return type(self)(**{**self.params.model_dump(), "params": params})

    def cost(self, random: bool) -> int | None:
        """The sum over the attacks, and the passes that choose; None where one of them gives none."""
        costs = [attack.cost(random) for attack in self.chosen(random=random)]
        if None in costs:
            return None
        choosing = (1 + len(costs)) * self.params.draws + len(costs) * CONFIRMING if random else 1 + len(costs)
        return sum(filter(None, costs)) + choosing

    def check(self, threat: Threat, *, targeted: bool = False) -> None:
        """At least one attack must understand the threat."""
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
        """Run each attack on what is still to be broken."""
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
                warnings.warn(ModelWarning(f"worst_case left out {type(attack).__name__}: {error}"), stacklevel=2)
                continue
            if attack.minimal_norm:
                found = within(found, x[left], threat, outward=clf.stochastic)
            kept.offer(found, left)
        if failures and len(failures) == len(fitting):
            raise failures[0]
        return kept.images


@torch.no_grad()
def _broken(clf: Classifier, kept: Kept, rows: Tensor, goal: Goal) -> Tensor:
    """Which of the kept images certainly fool the classifier, `(batch,)`, bool; the class docstring says when.

    On a random classifier only images that fool the draws which chose them are looked at anew.
    """
    assert kept.margins is not None, "an offer comes first"
    broken = kept.margins[rows] > 0
    if exact(clf, len(kept)) or not bool(broken.any()):
        return broken
    hopeful = broken.nonzero().squeeze(1)
    images = kept.images[rows][hopeful]
    logits = torch.stack([clf.at(clf.draw(), images) for _ in range(CONFIRMING)])
    broken[hopeful] = attacks.certainly_reached(clf, goal[hopeful], logits)
    return broken
