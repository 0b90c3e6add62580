"""Every registered attack and training method passes the suites that plugin authors inherit."""

from __future__ import annotations

from typing import Any

import pytest

from advbench.attacks.base import Attack
from advbench.errors import MissingExtraError
from advbench.registry import Entry, Kind, registry
from advbench.testing import AttackConformance, DefenseConformance
from advbench.training.base import Defense

FEW = {"square": "queries", "fmn": "steps"}
CHEAP_ATTACKS = {
    "pgd": [
        {"steps": 3},
        {"steps": 2, "restarts": 2, "loss": "dlr"},
    ],
    "eot_pgd": [{"steps": 2, "samples": 3}, {"steps": 4, "samples": 5, "restarts": 2}],
    "apgd": [{"steps": 5, "samples": 6}, {"steps": 3, "samples": 2, "loss": "dlr_targeted", "restarts": 2}],
    "cw": [{"steps": 10, "search_steps": 3, "samples": 2}],
    "alma": [{"steps": 10, "samples": 2}],
    "fab": [{"steps": 3, "targets": 1, "samples": 2, "restarts": 2}, {"steps": 2, "samples": 2, "early_stop": True}],
    "fmn": [{"steps": 12, "samples": 2}],
    "square": [{"queries": 12}],
    "gray_box": [
        {"params": {"steps": 3}},
        {"attack": "fmn", "params": {"steps": 5}},
        {"attack": "fgsm", "radii": 3},
    ],
    "certain": [{"steps": 2, "samples": 2}],
    "doubt": [{"steps": 2, "samples": 2, "measure": "epistemic"}],
    "ood": [{"steps": 2, "samples": 2}],
    "known_draw": [{"params": {"steps": 2}}],
    "worst_case": [{"attacks": ["fgsm", "square", "fmn"], "draws": 3, "params": {n: {k: 5} for n, k in FEW.items()}}],
}
CHEAP_DEFENSE = {"stages": (1, 1), "batch_size": 16}
CHAIN = {"burn_in": 2, "interval": 2, "samples": 4}
GAN = {**CHAIN, "hidden": (8, 8), "latent": 3, "gan_steps": 2, "critic_steps": 2, "gan_batch_size": 4}
CHEAP_DEFENSES = {
    "sgld": [CHAIN, {**CHAIN, "chains": 2}],
    "sgld_mixture": [{**CHAIN, "components": 2, "draws": 5}],
    "bal": [{"image_steps": 2, "chains": 2}, {"image_steps": 2, "image_chains": 2, "clean_weight": 0.5}],
    "apd": [GAN, {**GAN, "mode": "online", "chains": 2, "round_steps": 2, "round_gan_steps": 2}],
    "adversarial_sampling": [{}, {"init_from": "erm"}],
    "trades": [{}, {"norm": "l2", "eps": 0.5, "steps": 3}],
}
# Of methods that run another one, complete.
CHEAP_WRAPPERS: dict[str, list[dict[str, Any]]] = {
    "active": [{"method": "bnn", "params": CHEAP_DEFENSE, "rounds": 2, "batch": 4, "per_class": 2, "draws": 2}],
    "deep_ensemble": [
        {"members": 3, "params": CHEAP_DEFENSE},
        {"members": 2, "method": "rse", "params": CHEAP_DEFENSE},
        {"members": 2, "method": "bnn", "params": CHEAP_DEFENSE},
        {"members": 2, "method": "sgld", "params": {**CHEAP_DEFENSE, **CHAIN}},
    ],
}


def cheap_defenses(name: str) -> list[dict[str, Any]]:
    """Hyperparameters with which a method trains for a few steps."""
    return CHEAP_WRAPPERS.get(name) or [{**CHEAP_DEFENSE, **params} for params in CHEAP_DEFENSES.get(name, [{}])]


def usable(kind: Kind) -> list[Entry]:
    """What can be loaded here; families, and what needs an extra or files, have their own tests."""
    found = []
    for entry in registry().entries(kind):
        try:
            if not entry.is_family:
                fields = registry().load(kind, entry.name).Params.model_fields
                found += [] if any(field.is_required() for field in fields.values()) else [entry]
        except MissingExtraError:
            pass
    return found


def attacks() -> list[object]:
    names = [entry.name for entry in usable("attack") if entry.name != "autoattack"]
    return [pytest.param((n, p), id=f"{n}-{p}") for n in names for p in CHEAP_ATTACKS.get(n, [{}])]


class TestAttacks(AttackConformance):
    @pytest.fixture(params=attacks())
    def attack(self, request: pytest.FixtureRequest) -> Attack:
        name, params = request.param
        attack: Attack = registry().load("attack", name)(**params)
        return attack


def defenses() -> list[object]:
    names = [entry.name for entry in usable("defense")]
    return [pytest.param((n, p), id=f"{n}-{i}") for n in names for i, p in enumerate(cheap_defenses(n))]


class TestDefenses(DefenseConformance):
    @pytest.fixture(params=defenses())
    def defense(self, request: pytest.FixtureRequest) -> Defense:
        name, params = request.param
        defense: Defense = registry().load("defense", name)(**params)
        return defense


@pytest.mark.parametrize("entry", [*usable("attack"), *usable("defense")], ids=lambda e: e.name)
def test_every_hyperparameter_is_described_and_every_preset_is_valid(entry) -> None:
    cls = registry().load(entry.kind, entry.name)
    assert cls.__doc__
    assert all(field.description for field in cls.Params.model_fields.values())
    for preset in cls.presets:
        assert cls.resolve({"preset": preset})
