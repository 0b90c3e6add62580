"""PGD with expectation over transformation."""

from __future__ import annotations

from advbench.attacks import Field, Objective, Paper
from advbench_attacks.pgd import PGD

OBJECTIVE = (
    "objective over the draws of a step: mean_loss, their mean loss (Athalye et al. 2018), or loss_of_mean, the loss "
    "of their mean softmax, as in evaluations; with losses other than ce it takes two passes per draw"
)


class EOTPGD(PGD):
    """PGD with the gradient averaged over several fresh draws of the weights at each step.

    Athalye et al. 2018, "Obfuscated gradients give a false sense of security"; hierarchical variational
    inference uses 10 samples and steps of eps / steps. On a deterministic classifier it equals PGD.
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

        samples: int = Field(
            default=10, ge=1, description="number of draws of the weights per gradient; hierarchical_vi: 10"
        )
        objective: Objective = Field(default="mean_loss", description=OBJECTIVE)

    params: Params

    @property
    def samples(self) -> int:
        """Number of draws of the weights per gradient."""
        return self.params.samples

    @property
    def objective(self) -> Objective:
        """The hyperparameter `objective`."""
        return self.params.objective
