"""AutoAttack and RobustBench's models. Hooks only: the libraries load when one is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from advbench.registry import hookimpl

if TYPE_CHECKING:
    from advbench.registry import Registrar


@hookimpl
def advbench_register(register: Registrar) -> None:
    """Declare the attack, the ready-made defences, and the nets that these bring with them."""
    register.attack(
        "autoattack",
        "advbench_robustbench.autoattack:AutoAttack",
        "AutoAttack of its authors' package: standard, plus, rand (extra 'bridges')",
    )
    register.defense(
        "robustbench:",
        "advbench_robustbench.models:defense",
        "a model of RobustBench, as robustbench:cifar10/Linf/Carmon2019Unlabeled (extra 'bridges')",
    )
    register.architecture("robustbench:", "advbench_robustbench.models:architecture", "the net of that model")
