"""Reduction of attacks to a budget of forward passes."""

from __future__ import annotations

import bisect

from advbench.attacks.base import Attack
from advbench.errors import InputError


def within_budget(attack: Attack, budget: int, *, random: bool) -> Attack:
    """The same attack with its effort reduced to at most `budget` forward passes per image.

    Each component of a composite attack gets its minimum and an equal share of the rest; what a cheap component does
    not use goes to the others.

    Args:
        attack: the attack.
        budget: maximum number of forward passes per image.
        random: True if the classifier under attack is random.

    Raises:
        InputError: the attack gives no bound on its cost, or its minimum exceeds the budget.
    """
    name = type(attack).__name__
    needed = attack.cost(random)
    if needed is None:
        raise InputError(f"budget for attack {name}", expected="an attack with a known number of passes")
    if needed <= budget:
        return attack
    least = least_cost(attack, random=random)
    if least is None or least > budget:
        raise InputError(
            f"budget for attack {name}",
            expected=f"at least {least} passes per image",
            got=budget,
            remedy="raise the budget, or lower the attack's other hyperparameters",
        )
    if not attack.parts:
        efforts = range(_least(attack), getattr(attack.params, attack.effort))
        fitting = bisect.bisect_right(efforts, budget, key=lambda effort: _cost(_cut(attack, effort), random=random))
        return _cut(attack, efforts[fitting - 1])

    def shared(share: int) -> Attack:
        costs = {part: least_cost(each, random=random) or 0 for part, each in attack.parts.items()}
        return attack.with_parts(
            {part: within_budget(each, costs[part] + share, random=random) for part, each in attack.parts.items()}
        )

    shares = range(max(_cost(part, random=random) for part in attack.parts.values()) + 1)
    fitting = bisect.bisect_right(shares, budget, key=lambda share: _cost(shared(share), random=random))
    return shared(shares[fitting - 1])


def least_cost(attack: Attack, *, random: bool) -> int | None:
    """Smallest number of forward passes per image that `within_budget` can reach; None if unknown.

    Args:
        attack: the attack.
        random: True if the classifier under attack is random.
    """
    return _at_least(attack).cost(random)


def _at_least(attack: Attack) -> Attack:
    if attack.parts:
        return attack.with_parts({name: _at_least(part) for name, part in attack.parts.items()})
    if attack.effort:
        return _cut(attack, min(_least(attack), getattr(attack.params, attack.effort)))
    return attack


def _cut(attack: Attack, effort: int) -> Attack:
    return type(attack)(**{**attack.params.model_dump(), attack.effort: effort})


def _cost(attack: Attack, *, random: bool) -> int:
    return attack.cost(random) or 0


def _least(attack: Attack) -> int:
    bounds = type(attack).Params.model_fields[attack.effort].metadata
    return int(next((bound.ge for bound in bounds if hasattr(bound, "ge")), 1))
