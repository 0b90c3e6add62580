"""The iterative fast gradient sign method."""

from __future__ import annotations

from advbench.attacks import Field, Paper, Threat
from advbench_attacks.pgd import PGD


class IFGSM(PGD):
    """Signed steps of eps / steps from the clean image: what was tried before random starts.

    Kurakin et al. 2017, "Adversarial examples in the physical world" (the basic iterative method); a baseline of
    BAL. In l2 the sign becomes the gradient divided by its length.
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

        steps: int = Field(default=15, ge=1, description="gradient steps; BAL section 5: 15")
        step_size: float | None = Field(
            default=None, gt=0, description="length of a step in eps, by default 1 / steps (Kurakin 2017)"
        )
        random_start: bool = Field(default=False, description="start from a point of the ball; false is the method")

    stops_early = False  # the method has no more steps than it says, nor others
    params: Params

    def step_length(self, threat: Threat) -> float:
        """Length of a step in the threat's norm."""
        return threat.eps * (self.params.step_size or 1 / self.params.steps)
