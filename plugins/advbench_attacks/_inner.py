"""What attacks that run another one share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

import advbench
from advbench import attacks
from advbench.attacks import Attack, Field, Goal, Threat, within
from advbench.models import Classifier


class InnerParams(attacks.Params):
    """The attack that is run, and how."""

    attack: str = Field(default="pgd", description="name of the attack that is run; APD section 5.4: fgsm and pgd")
    params: dict[str, Any] = Field(default={}, description="hyperparameters of that attack, where not its defaults")


class InnerAttack(Attack):
    """An attack that runs another one, to the end, on a classifier of its choice: another one is evaluated."""

    targeted = True
    stops_early = False
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

    def with_parts(self, parts: Mapping[str, Attack]) -> Self:
        """With that inner attack."""
        return type(self)(**{**self.params.model_dump(), "params": parts[self.params.attack].params.model_dump()})

    def sees_random(self, random: bool) -> bool:
        """Whether the classifier that the inner attack sees is random."""
        return random

    def cost(self, random: bool) -> int | None:
        """That of the inner attack."""
        return self.inner.cost(self.sees_random(random))

    def check(self, threat: Threat, *, targeted: bool = False) -> None:
        """The inner attack must understand the threat."""
        self.inner.check(threat, targeted=targeted)

    def run(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        """Run the inner attack."""
        found = self.inner.search(self.attacked(clf), x, replace(goal, stop_early=False), threat, generator)
        return within(found, x, threat, outward=clf.stochastic) if self.inner.minimal_norm else found
