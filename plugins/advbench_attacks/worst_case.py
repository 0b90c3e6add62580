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

    def passes_per_image(self) -> float | None:
        """The sum over the attacks; none where one of them gives none."""
        passes = [attack.passes_per_image() for attack in self.attacks]
        return None if None in passes else float(sum(filter(None, passes)))

    def queries(self, *, random: bool) -> int | None:
        """The sum over the attacks, and the passes that choose."""
        costs = [attack.queries(random=random) for attack in self.attacks]
        if None in costs:
            return None
        return sum(filter(None, costs)) + self._choosing(random=random)

    def _choosing(self, *, random: bool) -> int:
        return (1 + len(self.attacks)) * (self.params.draws if random else 1)

    def within_budget(self, budget: int, *, random: bool) -> Self:
        """Each attack gets the least that it needs and an equal share of the rest, or what cheaper ones leave of it."""
        needed, least = self.queries(random=random), self.least_queries(random=random)
        if needed is None or least is None or needed <= budget or least > budget:
            return super().within_budget(budget, random=random)
        left, cut = budget - least, dict(self.params.params)
        named = list(zip(self.params.attacks, self.attacks, strict=True))
        named.sort(key=lambda pair: pair[1].queries(random=random) or 0)
        for done, (name, attack) in enumerate(named):
            share = (attack.least_queries(random=random) or 0) + left // (len(named) - done)
            limited = attack.within_budget(share, random=random)
            cut[name] = limited.params.model_dump()
            left -= (limited.queries(random=random) or 0) - (attack.least_queries(random=random) or 0)
        return type(self)(**{**self.params.model_dump(), "params": cut})

    def least_queries(self, *, random: bool) -> int | None:
        """The sum of what the attacks can be cut to, and the passes that choose."""
        least = [attack.least_queries(random=random) for attack in self.attacks]
        return None if None in least else sum(filter(None, least)) + self._choosing(random=random)

    def check(self, threat: Threat, targets: Tensor | None = None) -> None:
        """At least one attack must understand the threat."""
        if not any(self._fits(attack, threat.norm, targets) for attack in self.attacks):
            self.attacks[0].check(threat, targets)

    @staticmethod
    def _fits(attack: Attack, norm: Norm, targets: Tensor | None) -> bool:
        try:
            attack.check(Threat(norm, 0.0), targets)
        except advbench.InputError:
            return False
        return True

    def run(
        self,
        clf: Classifier,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        generator: torch.Generator,
        targets: Tensor | None = None,
    ) -> Tensor:
        """Run each attack on what is still to be broken."""
        kept = Kept(clf, Goal.of(y, targets), self.params.draws)
        kept.offer(x)
        for attack in self.attacks:
            rows = kept.remaining()
            if len(rows) == 0 or not self._fits(attack, threat.norm, targets):
                continue
            aims = None if targets is None else targets[rows]
            found = attack.search(clf, x[rows], y[rows], threat, generator, aims)
            if attack.minimal_norm:
                found = within(found, x[rows], threat, outward=clf.stochastic)
            kept.offer(found, rows)
        return kept.images
