"""Monte Carlo dropout."""

from __future__ import annotations

from advbench.models import DropoutNoise, Noise
from advbench.training import ErmLoss, Field, Paper, TrainParams


class MCDropout(ErmLoss):
    """Dropout in training and in prediction, an approximate posterior over the weights.

    Gal and Ghahramani 2016; "MC-Drop" in APD Table 1. The module's own dropout layers are used, at `rate`; in a module
    without any, dropout is added before each linear layer other than its first layer of weights. It stays on in
    evaluation mode.
    """

    version = "1"
    paper = Paper(
        title="Dropout as a Bayesian Approximation: Representing Model Uncertainty in Deep Learning",
        authors="Gal, Ghahramani",
        year=2016,
        link="https://arxiv.org/abs/1506.02142",
    )

    class Params(TrainParams):
        """Hyperparameters of Monte Carlo dropout."""

        rate: float = Field(default=0.5, ge=0, lt=1, description="probability of dropping a unit; APD section 5.2: 0.5")

    presets = {
        "digits": {"stages": (60, 20), "batch_size": 64, "rate": 0.2},
        "mnist": {"stages": (8, 2)},
        "cifar10": {"stages": (40, 20), "augment": True, "rate": 0.2},
        "paper": {
            "stages": (371,),
            "batch_size": 100,
            "optimizer": "sgd",
            "momentum": 0.0,
            "lr": 0.05,
            "weight_decay": 0.001,
            "rate": 0.5,
        },
    }
    sources = {
        "APD section 5.2.1": "batch_size optimizer momentum lr weight_decay rate",
        "APD's released code: 200,000 steps": "stages",
    }
    params: Params

    def noise(self) -> Noise:
        """Dropout."""
        return DropoutNoise(self.params.rate)
