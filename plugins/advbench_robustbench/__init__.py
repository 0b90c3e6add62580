"""AutoAttack and the models of RobustBench. Hooks only: the libraries load on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from advbench.registry import hookimpl

if TYPE_CHECKING:
    from advbench.registry import Registrar


@hookimpl
def advbench_register(register: Registrar) -> None:
    """Declare the attack, the pretrained defenses, and their nets."""
    register.attack(
        "autoattack",
        "advbench_robustbench.autoattack:AutoAttack",
        "AutoAttack from its authors' package: standard, plus, rand (extra 'bridges')",
    )
    register.defense(
        "robustbench:",
        "advbench_robustbench.models:defense",
        "a model of RobustBench, such as robustbench:cifar10/Linf/Carmon2019Unlabeled (extra 'bridges')",
    )
    register.architecture("robustbench:", "advbench_robustbench.models:architecture", "net of the model")
