"""What attacks that run another one share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

import advbench
from advbench import attacks
from advbench.attacks import Attack, Field, Threat, within
from advbench.models import Classifier


class InnerParams(attacks.Params):
    """The attack that is run, and how."""

    attack: str = Field(default="pgd", description="name of the attack that is run; APD section 5.4: fgsm and pgd")
    params: dict[str, Any] = Field(default={}, description="hyperparameters of that attack, where not its defaults")


class InnerAttack(Attack):
    """An attack that runs another one on a classifier of its choice."""

    targeted = True
    params: InnerParams

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self.inner = advbench.get_attack(self.params.attack, **self.params.params)

    @property
    def parts(self) -> Mapping[str, Attack]:
        """The inner attack."""
        return {self.params.attack: self.inner}

    def attacked(self, clf: Classifier) -> Classifier:
        """The classifier that the inner attack sees."""
        return clf

    def passes_per_image(self) -> float | None:
        """Those of the inner attack."""
        return self.inner.passes_per_image()

    def sees_random(self, *, random: bool) -> bool:
        """Whether the classifier that the inner attack sees is random."""
        return random

    def queries(self, *, random: bool) -> int | None:
        """Those of the inner attack."""
        return self.inner.queries(random=self.sees_random(random=random))

    def least_queries(self, *, random: bool) -> int | None:
        """Those of the inner attack."""
        return self.inner.least_queries(random=self.sees_random(random=random))

    def within_budget(self, budget: int, *, random: bool) -> Self:
        """With the inner attack cut."""
        cut = self.inner.within_budget(budget, random=self.sees_random(random=random))
        return type(self)(**{**self.params.model_dump(), "params": cut.params.model_dump()})

    def check(self, threat: Threat, targets: Tensor | None = None) -> None:
        """The inner attack must understand the threat."""
        self.inner.check(threat, targets)

    def run(
        self,
        clf: Classifier,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        generator: torch.Generator,
        targets: Tensor | None = None,
    ) -> Tensor:
        """Run the inner attack."""
        attacked = self.attacked(clf)
        found = self.inner.search(attacked, x, y, threat, generator, targets)
        return within(found, x, threat, outward=clf.stochastic) if self.inner.minimal_norm else found
