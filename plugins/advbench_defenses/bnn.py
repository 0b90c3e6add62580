"""Bayes by backprop: a Bayesian neural network without adversarial training."""

from __future__ import annotations

from advbench.training import BayesParams, ElboLoss, Paper


class BNN(ElboLoss):
    """Mean-field Gaussian variational inference on clean images.

    Blundell et al. 2015; Adv-BNN eq. 7 with the weight alpha of eq. 13 on the KL. Every parameter is random, including
    biases and affine parameters of batch norm, and a draw is shared by the batch.
    """

    version = "2"
    paper = Paper(
        title="Weight Uncertainty in Neural Networks",
        authors="Blundell, Cornebise, Kavukcuoglu, Wierstra",
        year=2015,
        link="https://arxiv.org/abs/1505.05424",
    )

    class Params(BayesParams):
        """Hyperparameters of Bayes by backprop."""

    presets = {
        "digits": {"stages": (35, 10), "batch_size": 64, "lr": 3e-3},
        "mnist": {"stages": (4, 1)},
        "cifar10": {"stages": (40, 20), "augment": True, "prior_std": 0.05, "init_std": 0.02},
        # Adv-BNN section 4, without its attack.
        "paper": {
            "stages": (80, 60, 40, 20),
            "lr": 0.01,
            "augment": True,
            "prior_std": 0.05,
            "init_std": 0.05,
            "kl_weight": 1.0,
            "kl_scope": "classifier",
        },
    }
    params: Params
