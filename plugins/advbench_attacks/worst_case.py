"""The worst of several attacks for each image, chosen by draws that do not judge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

import advbench
from advbench import attacks
from advbench.attacks import Attack, Field, Goal, Kept, Norm, Threat, within
from advbench.models import Classifier

DEFAULT = ("apgd", "apgd@targeted", "fmn", "square")
DEFAULT_PARAMS = {"apgd@targeted": {"loss": "dlr_targeted"}}


class WorstCase(Attack):
    """Several attacks; each image keeps the example of largest mean margin over draws of the attack's own.

    On a random classifier a minimum over the attacks' verdicts would report a robust model as broken: one that is
    right with probability 0.95 whatever the input would be wrong under one of many verdicts. Here examples are
    chosen on one set of draws and judged on another, so the choice of a lucky one buys nothing. On a deterministic
    classifier an image that one attack broke is not given to the next; put the cheap ones first.
    """

    version = "1"

    class Params(attacks.Params):
        """Hyperparameters of the worst case."""

        attacks: tuple[str, ...] = Field(
            default=DEFAULT,
            min_length=1,
            description="attacks in their order, each NAME or NAME@LABEL; those that lack the norm are left out",
        )
        params: dict[str, dict[str, Any]] = Field(
            default=DEFAULT_PARAMS, description="hyperparameters of each, by the name in `attacks`"
        )
        draws: int = Field(
            default=50, ge=1, description="draws on which the examples of a random classifier are chosen"
        )

    targeted = True
    params: Params

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        chosen = self.params.params
        repeated = sorted({name for name in self.params.attacks if self.params.attacks.count(name) > 1})
        if repeated:
            expected = "each name once; NAME@LABEL has one attack several times"
            raise advbench.InputError("attacks of the worst case", expected=expected, got=", ".join(repeated))
        for name in chosen.keys() - set(self.params.attacks) - DEFAULT_PARAMS.keys():
            raise advbench.InputError("params of the worst case", expected="names in `attacks`", got=repr(name))
        self.attacks: list[Attack] = [
            advbench.get_attack(name.partition("@")[0], **chosen.get(name, {})) for name in self.params.attacks
        ]

    @property
    def parts(self) -> Mapping[str, Attack]:
        """The attacks."""
        return dict(zip(self.params.attacks, self.attacks, strict=True))

    def with_parts(self, parts: Mapping[str, Attack]) -> Self:
        """With those attacks."""
        params = {name: part.params.model_dump() for name, part in parts.items()}
        return type(self)(**{**self.params.model_dump(), "params": params})

    def cost(self, random: bool) -> int | None:
        """The sum over the attacks, and the passes that choose; None where one of them gives none."""
        costs = [attack.cost(random) for attack in self.attacks]
        if None in costs:
            return None
        return sum(filter(None, costs)) + (1 + len(self.attacks)) * (self.params.draws if random else 1)

    def check(self, threat: Threat, *, targeted: bool = False) -> None:
        """At least one attack must understand the threat."""
        if not any(self._fits(attack, threat.norm, targeted=targeted) for attack in self.attacks):
            self.attacks[0].check(threat, targeted=targeted)

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
        for attack in self.attacks:
            rows = kept.remaining()
            if len(rows) == 0 or not self._fits(attack, threat.norm, targeted=goal.targeted):
                continue
            found = attack.search(clf, x[rows], goal[rows], threat, generator)
            if attack.minimal_norm:
                found = within(found, x[rows], threat, outward=clf.stochastic)
            kept.offer(found, rows)
        return kept.images
