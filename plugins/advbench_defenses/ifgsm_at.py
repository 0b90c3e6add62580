"""Adversarial training on iterated FGSM examples."""

from __future__ import annotations

from advbench.training import AdversarialParams, ErmLoss, Field, Paper, PgdPerturbation


class IFGSMAT(PgdPerturbation, ErmLoss):
    """Adversarial training on iterated FGSM: signed steps from the image itself, without random start.

    Kurakin et al. 2017; "IFGSM" in BAL Figure 1, with the 15 steps of BAL's chains.
    """

    version = "1"
    paper = Paper(
        title="Adversarial Machine Learning at Scale",
        authors="Kurakin, Goodfellow, Bengio",
        year=2017,
        link="https://arxiv.org/abs/1611.01236",
    )

    class Params(AdversarialParams):
        """Hyperparameters of iterated FGSM training."""

        steps: int = Field(default=15, ge=1, description="number of signed steps in training; BAL section 5: 15")
        random_start: bool = Field(default=False, description="random start in the ball; IFGSM: false")

    presets = {
        "digits": {"stages": (40, 10), "batch_size": 64, "eps": 0.15},
        "mnist": {"stages": (4, 1), "eps": 0.3},
        "cifar10": {"stages": (40, 20), "augment": True, "eps": 8 / 256},
        # BAL section 5; eps 0.02 is where IFGSM training does best in section 5.1.
        "paper": {"stages": (2,), "eps": 0.02, "init_from": "erm"},
    }
    params: Params
