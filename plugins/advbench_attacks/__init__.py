"""The attacks that come with advbench. Hooks only: an attack's module loads when it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from advbench.hookspecs import hookimpl

if TYPE_CHECKING:
    from advbench.registry import Registrar


@hookimpl
def advbench_register(register: Registrar) -> None:
    """Declare the attacks."""
    register.attack("none", "advbench_attacks.none:NoAttack", "no attack: the clean images")
    register.attack("fgsm", "advbench_attacks.fgsm:FGSM", "one steepest step (Goodfellow et al. 2015)")
    register.attack("pgd", "advbench_attacks.pgd:PGD", "projected gradient descent (Madry et al. 2018)")
    register.attack(
        "eot_pgd",
        "advbench_attacks.eot_pgd:EOTPGD",
        "PGD on the gradient averaged over several draws a step (Athalye et al. 2018)",
    )
