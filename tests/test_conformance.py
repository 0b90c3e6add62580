"""Every registered attack and training method passes the suites that plugin authors inherit."""

from __future__ import annotations

import pytest

from advbench.api import Attack, Defense
from advbench.registry import registry
from advbench.testing import AttackConformance, DefenseConformance

CHEAP_ATTACKS = {
    "pgd": [{"steps": 3}, {"steps": 2, "restarts": 2, "loss": "dlr"}],
    "eot_pgd": [{"steps": 2, "samples": 3}],
}
CHEAP_DEFENSE = {"stages": (1, 1), "batch_size": 16}


def attacks() -> list[object]:
    names = [entry.name for entry in registry().entries("attack")]
    return [pytest.param((n, p), id=f"{n}-{p}") for n in names for p in CHEAP_ATTACKS.get(n, [{}])]


class TestAttacks(AttackConformance):
    @pytest.fixture(params=attacks())
    def attack(self, request: pytest.FixtureRequest) -> Attack:
        name, params = request.param
        attack: Attack = registry().load("attack", name)(**params)
        return attack


class TestDefenses(DefenseConformance):
    @pytest.fixture(params=[entry.name for entry in registry().entries("defense")])
    def defense(self, request: pytest.FixtureRequest) -> Defense:
        defense: Defense = registry().load("defense", request.param)(**CHEAP_DEFENSE)
        return defense


@pytest.mark.parametrize(
    "entry", [e for e in registry().entries() if e.kind in ("attack", "defense")], ids=lambda e: e.name
)
def test_every_hyperparameter_is_described_and_every_preset_is_valid(entry) -> None:
    cls = registry().load(entry.kind, entry.name)
    assert cls.__doc__
    assert all(field.description for field in cls.Params.model_fields.values())
    for preset in cls.presets:
        assert cls.resolve({"preset": preset})
