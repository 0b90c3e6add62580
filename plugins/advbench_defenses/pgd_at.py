"""Adversarial training on PGD examples."""

from __future__ import annotations

from advbench.training import AdversarialParams, ErmLoss, Paper, PgdPerturbation


class PGDAT(PgdPerturbation, ErmLoss):
    """Adversarial training: minimise the cross-entropy on PGD examples for the current weights.

    Madry et al. 2018, eq. 2.1; Adv-BNN eq. 4. The inner maximisation is PGD with a random start.
    """

    version = "1"
    paper = Paper(
        title="Towards Deep Learning Models Resistant to Adversarial Attacks",
        authors="Madry, Makelov, Schmidt, Tsipras, Vladu",
        year=2018,
        link="https://arxiv.org/abs/1706.06083",
    )

    class Params(AdversarialParams):
        """Hyperparameters of adversarial training."""

    presets = {
        "digits": {"stages": (40, 10), "batch_size": 64, "eps": 0.15},
        "mnist": {"stages": (4, 1), "eps": 0.3},
        "cifar10": {"stages": (40, 20), "augment": True, "eps": 8 / 256},
        # Adv-BNN section 4, with the settings of Adv-BNN.
        "paper": {"stages": (80, 60, 40, 20), "lr": 0.01, "augment": True, "eps": 8 / 256, "steps": 10},
    }
    params: Params
