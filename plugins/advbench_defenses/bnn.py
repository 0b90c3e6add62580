"""Bayes by backprop: a Bayesian neural network that never saw an attack."""

from __future__ import annotations

from advbench.training import BayesParams, ElboLoss


class BNN(ElboLoss):
    """Mean-field Gaussian variational inference on clean images.

    Blundell et al. 2015; Adv-BNN eq. 7 with the weight alpha of eq. 13 on the KL. Every parameter is
    random, biases and batch norm's affine ones too, and a draw is shared by the batch.
    """

    class Params(BayesParams):
        """Hyperparameters of Bayes by backprop."""

    presets = {
        "digits": {"stages": (35, 10), "batch_size": 64, "lr": 3e-3, "init_std": 0.05},
        "mnist": {"stages": (4, 1), "init_std": 0.05},
        "cifar10": {"stages": (40, 20), "augment": True, "prior_std": 0.05, "init_std": 0.02},
    }
    params: Params
