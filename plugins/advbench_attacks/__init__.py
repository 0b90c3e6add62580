"""Built-in attacks. Hooks only: the module of an attack loads on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from advbench.registry import hookimpl

if TYPE_CHECKING:
    from advbench.registry import Registrar


@hookimpl
def advbench_register(register: Registrar) -> None:
    """Declare the attacks."""
    register.attack("none", "advbench_attacks.none:NoAttack", "no attack: the clean images")
    register.attack("fgsm", "advbench_attacks.fgsm:FGSM", "a single gradient step (Goodfellow et al. 2015)")
    register.attack("ifgsm", "advbench_attacks.ifgsm:IFGSM", "signed steps from the clean image (Kurakin et al. 2017)")
    register.attack("pgd", "advbench_attacks.pgd:PGD", "projected gradient descent (Madry et al. 2018)")
    register.attack(
        "eot_pgd",
        "advbench_attacks.eot_pgd:EOTPGD",
        "PGD with the gradient averaged over several draws per step (Athalye et al. 2018)",
    )
    register.attack("apgd", "advbench_attacks.apgd:APGD", "Auto-PGD with adaptive step sizes (Croce and Hein 2020)")
    register.attack("cw", "advbench_attacks.cw:CW", "minimal l2 norm, with Adam (Carlini and Wagner 2017)")
    register.attack(
        "cw_one_step", "advbench_attacks.cw_one_step:CWOneStep", "a single step on the margin (Ye and Zhu 2018)"
    )
    register.attack("alma", "advbench_attacks.alma:ALMA", "minimal l2 norm, augmented Lagrangian (Rony et al. 2021)")
    register.attack("fab", "advbench_attacks.fab:FAB", "minimal linf or l2 norm, linearised (Croce and Hein 2020)")
    register.attack("fmn", "advbench_attacks.fmn:FMN", "minimal linf or l2 norm (Pintor et al. 2021)")
    register.attack("square", "advbench_attacks.square:Square", "black-box random search (Andriushchenko et al. 2020)")
    register.attack("gray_box", "advbench_attacks.gray_box:GrayBox", "any attack on one frozen draw (Wang et al. 2018)")
    register.attack("known_draw", "advbench_attacks.known_draw:KnownDraw", "any attack on the draw that is evaluated")
    register.attack("transfer", "advbench_attacks.transfer:Transfer", "any attack on the classifier of another defense")
    register.attack("worst_case", "advbench_attacks.worst_case:WorstCase", "per-image worst case of several attacks")
    register.attack("certain", "advbench_attacks.certain:Certain", "errors with low uncertainty (Feng et al. 2024)")
    register.attack("doubt", "advbench_attacks.doubt:Doubt", "same class, high uncertainty (Feng et al. 2024)")
    register.attack(
        "ood", "advbench_attacks.ood:Ood", "out-of-distribution images with low uncertainty (Feng et al. 2024)"
    )
