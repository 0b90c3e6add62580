"""The attacks that come with advbench. Hooks only: an attack's module loads when it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from advbench.registry import hookimpl

if TYPE_CHECKING:
    from advbench.registry import Registrar


@hookimpl
def advbench_register(register: Registrar) -> None:
    """Declare the attacks."""
    register.attack("none", "advbench_attacks.none:NoAttack", "no attack: the clean images")
    register.attack("fgsm", "advbench_attacks.fgsm:FGSM", "one steepest step (Goodfellow et al. 2015)")
    register.attack("ifgsm", "advbench_attacks.ifgsm:IFGSM", "signed steps from the clean image (Kurakin et al. 2017)")
    register.attack("pgd", "advbench_attacks.pgd:PGD", "projected gradient descent (Madry et al. 2018)")
    register.attack(
        "eot_pgd",
        "advbench_attacks.eot_pgd:EOTPGD",
        "PGD on the gradient averaged over several draws a step (Athalye et al. 2018)",
    )
    register.attack("apgd", "advbench_attacks.apgd:APGD", "PGD that sets its own steps (Croce and Hein 2020)")
    register.attack("cw", "advbench_attacks.cw:CW", "nearest example in l2 by Adam (Carlini and Wagner 2017)")
    register.attack("cw_one_step", "advbench_attacks.cw_one_step:CWOneStep", "one step on the margin (Ye and Zhu 2018)")
    register.attack("alma", "advbench_attacks.alma:ALMA", "nearest example in l2 by penalties (Rony et al. 2021)")
    register.attack("fab", "advbench_attacks.fab:FAB", "nearest example in linf or l2 by planes (Croce and Hein 2020)")
    register.attack("fmn", "advbench_attacks.fmn:FMN", "nearest example in linf or l2 (Pintor et al. 2021)")
    register.attack(
        "square", "advbench_attacks.square:Square", "black box: random squares (Andriushchenko et al. 2020)"
    )
    register.attack("gray_box", "advbench_attacks.gray_box:GrayBox", "any attack on one frozen draw (Wang et al. 2018)")
    register.attack("known_draw", "advbench_attacks.known_draw:KnownDraw", "any attack on the very draw that answers")
    register.attack("transfer", "advbench_attacks.transfer:Transfer", "any attack on another defense's classifier")
    register.attack("worst_case", "advbench_attacks.worst_case:WorstCase", "each image's worst of several attacks")
    register.attack("certain", "advbench_attacks.certain:Certain", "wrong and of low uncertainty (Feng et al. 2024)")
    register.attack("doubt", "advbench_attacks.doubt:Doubt", "same class, high uncertainty (Feng et al. 2024)")
    register.attack(
        "ood", "advbench_attacks.ood:Ood", "out-of-distribution images of low uncertainty (Feng et al. 2024)"
    )
