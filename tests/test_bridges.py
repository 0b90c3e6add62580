"""Bridges to other libraries; most tests need the extra `bridges` and run under tox -e bridges."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

import advbench
from advbench.api import Attack
from advbench.testing import AttackConformance

HERE = importlib.util.find_spec("torchattacks") is not None
needs_libraries = pytest.mark.skipif(not HERE, reason="needs the extra 'bridges'")

CHEAP: dict[str, dict[str, Any]] = {}


def names() -> list[str]:
    if not HERE:
        return []
    import torchattacks

    return [name for name in torchattacks.__all__ if name not in ("MultiAttack", "LGV")]


@needs_libraries
class TestTorchattacks(AttackConformance):
    classes = 4
    channels = 3

    @pytest.fixture(params=names())
    def attack(self, request: pytest.FixtureRequest) -> Attack:
        return advbench.get_attack(f"torchattacks:{request.param}", **CHEAP.get(request.param, {}))
