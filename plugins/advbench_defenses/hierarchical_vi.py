"""Hierarchical variational inference: Adv-BNN with a regulariser that does not shrink the noise."""

from __future__ import annotations

from torch import Tensor

from advbench.models import matched_divergence
from advbench.training import AdversarialParams, Field, Paper, PgdPerturbation, VariationalLoss, VariationalParams


class HierarchicalVI(PgdPerturbation, VariationalLoss):
    """Adversarial training of a mean-field Gaussian posterior with the enhanced Bayesian regulariser.

    "Enhanced Bayesian Regularizer" (ICLR 2021 submission), Algorithm 1: Adv-BNN with R = 1/2 log(1 + mu^2 / sigma^2) of
    each weight in place of the KL. R is the limit of the hierarchical KL (eq. 14) at lambda* and nu to infinity, and
    equals KL(N(mu, sigma^2) || N(0, mu^2 + sigma^2)); it never shrinks sigma.

    Errata. The mean over the M weights in eq. 7 is a sum (Lemma B.4). The paper's initial "variance" 0.1 is the
    standard deviation in its released code, which multiplies the sum by 0.1 / N: `kl_weight` 0.1.
    """

    version = "2"
    paper = Paper(
        title="Towards Adversarial Robustness of Bayesian Neural Network through Hierarchical Variational Inference",
        authors="Lee, Yu, Ro",
        year=2021,
        link="https://openreview.net/forum?id=Cue2ZEBf12",
    )

    class Params(AdversarialParams, VariationalParams):
        """Hyperparameters of hierarchical variational inference."""

        init_std: float = Field(default=0.1, gt=0, description="initial standard deviation of each weight; paper: 0.1")
        kl_weight: float = Field(
            default=0.1,
            ge=0,
            description="weight of R, dimensionless: the loss is CE + kl_weight / N * R in nats; released code: 0.1",
        )
        eps: float = Field(default=0.03, ge=0, description="radius of the ball in training, for pixels in [0, 1]")
        steps: int = Field(default=10, ge=1, description="number of PGD steps in training; paper: 10")

    presets = {
        "digits": {"stages": (35, 10), "batch_size": 64, "lr": 3e-3, "init_std": 0.05, "eps": 0.15},
        "mnist": {"stages": (4, 1), "init_std": 0.05, "eps": 0.3},
        "cifar10": {"stages": (40, 20), "augment": True, "init_std": 0.02, "eps": 8 / 256},
        "paper": {
            "stages": (30, 20, 10),
            "lr": 0.01,
            "batch_size": 100,
            "augment": "flip",
            "init_std": 0.1,
            "kl_weight": 0.1,
            "eps": 0.03,
            "steps": 10,
            "step_size": 0.23,
        },
    }
    sources = {"section 4": "lr init_std eps steps step_size", "released code": "stages batch_size kl_weight augment"}
    params: Params

    def divergence(self, mean: Tensor, log_std: Tensor) -> Tensor:
        """R, the enhanced Bayesian regulariser."""
        return matched_divergence(mean, log_std)
