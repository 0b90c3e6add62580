"""Base class of attacks that run another attack."""

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
    """Inner attack and its hyperparameters."""

    attack: str = Field(default="pgd", description="name of the inner attack; APD section 5.4: fgsm and pgd")
    params: dict[str, Any] = Field(
        default={}, description="hyperparameters of the inner attack that differ from its defaults"
    )


class InnerAttack(Attack):
    """Base class of attacks that run an inner attack on a classifier other than the evaluated one."""

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

    def with_parts(self, parts: Mapping[str, Attack]) -> Self:
        """The same attack with another inner attack."""
        return type(self)(**{**self.params.model_dump(), "params": parts[self.params.attack].params.model_dump()})

    def sees_random(self, random: bool) -> bool:
        """True if the classifier that the inner attack sees is random."""
        return random

    def cost(self, random: bool) -> int | None:
        """Cost of the inner attack."""
        return self.inner.cost(self.sees_random(random))

    def check(self, threat: Threat, *, targeted: bool = False) -> None:
        """Check that the inner attack supports the threat."""
        self.inner.check(threat, targeted=targeted)

    def run(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        """Run the inner attack."""
        found = self.inner.search(self.attacked(clf), x, replace(goal, stop_early=False), threat, generator)
        return within(found, x, threat, outward=clf.stochastic) if self.inner.minimal_norm else found
