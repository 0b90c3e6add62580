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
        "paper": {
            "stages": (80, 60, 40, 20),
            "batch_size": 128,
            "lr": 0.01,
            "augment": True,
            "prior_std": 0.05,
            "init_std": 0.05,
            "kl_weight": 0.01,
            "kl_scope": "classifier",
        },
    }
    sources = {
        "Adv-BNN Table 2": "prior_std init_std",
        "Adv-BNN's released code, CIFAR-10": "stages batch_size lr augment kl_weight kl_scope",
    }
    params: Params
