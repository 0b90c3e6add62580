"""Empirical risk minimisation, without any defense."""

from __future__ import annotations

from advbench.training import ErmLoss, TrainParams


class ERM(ErmLoss):
    """Plain training: minimise the mean cross-entropy on clean images.

    The undefended model of every paper's tables ("None" in Adv-BNN Figure 3, "SGD" in APD Table 1).
    """

    version = "1"

    class Params(TrainParams):
        """Hyperparameters of plain training."""

    presets = {
        "digits": {"stages": (40, 10), "batch_size": 64},
        "mnist": {"stages": (4, 1)},
        "cifar10": {"stages": (40, 20), "augment": True},
        "paper": {
            "stages": (371,),
            "batch_size": 100,
            "optimizer": "sgd",
            "momentum": 0.0,
            "lr": 0.05,
            "weight_decay": 0.001,
        },
    }
    sources = {
        "APD section 5.2.1": "batch_size optimizer momentum lr weight_decay",
        "APD's released code: 200,000 steps": "stages",
    }
    params: Params
