"""Attacks of torchattacks as attacks of advbench. Hooks only: the library loads on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from advbench.registry import hookimpl

if TYPE_CHECKING:
    from advbench.registry import Registrar


@hookimpl
def advbench_register(register: Registrar) -> None:
    """Declare the family."""
    register.attack(
        "torchattacks:",
        "advbench_torchattacks.bridge:attack",
        "any attack of torchattacks, such as torchattacks:PGD (extra 'bridges')",
    )
