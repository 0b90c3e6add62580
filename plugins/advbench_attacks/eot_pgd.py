"""PGD with expectation over transformation."""

from __future__ import annotations

from advbench.attacks import Field, Objective, Paper
from advbench_attacks.pgd import PGD

OBJECTIVE = (
    "what is ascended of a step's draws: mean_loss, the mean of their losses (Athalye et al. 2018), or loss_of_mean, "
    "the loss of their mean softmax, which is what is evaluated; with losses other than ce that costs two passes a draw"
)


class EOTPGD(PGD):
    """PGD whose gradient at each step is the mean over several fresh draws of the weights.

    Athalye et al. 2018, "Obfuscated gradients give a false sense of security"; hierarchical variational
    inference uses 10 samples and steps of eps / steps. On a deterministic classifier all draws are one and
    it is PGD.
    """

    version = "2"
    paper = Paper(
        title="Obfuscated Gradients Give a False Sense of Security: Circumventing Defenses to Adversarial Examples",
        authors="Athalye, Carlini, Wagner",
        year=2018,
        link="https://arxiv.org/abs/1802.00420",
    )

    class Params(PGD.Params):
        """Hyperparameters of EOT-PGD."""

        samples: int = Field(default=10, ge=1, description="draws of the weights per gradient; hierarchical_vi: 10")
        objective: Objective = Field(default="mean_loss", description=OBJECTIVE)

    params: Params

    @property
    def samples(self) -> int:
        """Draws of the weights averaged in one gradient."""
        return self.params.samples

    @property
    def objective(self) -> Objective:
        """The hyperparameter."""
        return self.params.objective
