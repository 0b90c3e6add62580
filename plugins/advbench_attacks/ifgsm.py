"""The iterative fast gradient sign method."""

from __future__ import annotations

from advbench.attacks import Field, Paper, Threat
from advbench_attacks.pgd import PGD


class IFGSM(PGD):
    """Signed gradient steps of eps / steps from the clean image, without random start.

    Kurakin et al. 2017, "Adversarial examples in the physical world" (the basic iterative method); a baseline of
    BAL. In l2 the sign is replaced by the normalised gradient.
    """

    version = "1"
    paper = Paper(
        title="Adversarial Examples in the Physical World",
        authors="Kurakin, Goodfellow, Bengio",
        year=2017,
        link="https://arxiv.org/abs/1607.02533",
    )

    class Params(PGD.Params):
        """Hyperparameters of IFGSM."""

        steps: int = Field(default=15, ge=1, description="number of gradient steps; BAL section 5: 15")
        step_size: float | None = Field(
            default=None, gt=0, description="step size as a fraction of eps; None for 1 / steps (Kurakin et al. 2017)"
        )
        random_start: bool = Field(default=False, description="random start in the ball; IFGSM: false")

    stops_early = False  # the number of steps is part of the method
    params: Params

    def step_length(self, threat: Threat) -> float:
        """Step size in the threat's norm."""
        return threat.eps * (self.params.step_size or 1 / self.params.steps)
