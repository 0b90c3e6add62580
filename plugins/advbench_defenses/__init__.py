"""The training methods that come with advbench. Hooks only: a method's module loads when it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from advbench.hookspecs import hookimpl

if TYPE_CHECKING:
    from advbench.registry import Registrar


@hookimpl
def advbench_register(register: Registrar) -> None:
    """Declare the training methods."""
    register.defense("erm", "advbench_defenses.erm:ERM", "plain training: empirical risk minimisation")
    register.defense("pgd_at", "advbench_defenses.pgd_at:PGDAT", "adversarial training on PGD (Madry et al. 2018)")
    register.defense("bnn", "advbench_defenses.bnn:BNN", "Bayes by backprop, no attack (Blundell et al. 2015)")
    register.defense("adv_bnn", "advbench_defenses.adv_bnn:AdvBNN", "adversarially trained BNN (Liu et al. 2019)")
