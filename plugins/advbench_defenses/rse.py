"""Random Self-Ensemble: Gaussian noise before every convolution."""

from __future__ import annotations

from advbench.models import GaussianNoise, Noise
from advbench.training import ErmLoss, Field, Paper, TrainParams


class RSE(ErmLoss):
    """Training and prediction with Gaussian noise on the images and before each convolution.

    Liu et al. 2018, "Towards Robust Neural Networks via Random Self-ensemble", the baseline of Adv-BNN Figure 3.
    In a net without convolutions, noise is added before the linear layers. It stays on in evaluation mode.
    """

    version = "2"
    paper = Paper(
        title="Towards Robust Neural Networks via Random Self-ensemble",
        authors="Liu, Cheng, Zhang, Hsieh",
        year=2018,
        link="https://arxiv.org/abs/1712.00673",
    )

    class Params(TrainParams):
        """Hyperparameters of Random Self-Ensemble."""

        first_std: float = Field(
            default=0.2,
            ge=0,
            description="standard deviation of the noise on the images, for pixels in [0, 1]; RSE: 0.2",
        )
        inner_std: float = Field(
            default=0.1,
            ge=0,
            description="standard deviation of the noise before each convolution but the first, in units of its "
            "input; RSE: 0.1",
        )

    presets = {
        "digits": {"stages": (40, 10), "batch_size": 64},
        "mnist": {"stages": (4, 1)},
        "cifar10": {"stages": (40, 20), "augment": True},
        "paper": {
            "stages": (80, 60, 40, 20),
            "batch_size": 128,
            "lr": 0.01,
            "optimizer": "sgd",
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "augment": True,
            "first_std": 0.2,
            "inner_std": 0.1,
        },
    }
    sources = {
        "Adv-BNN's released code, CIFAR-10": "stages batch_size lr optimizer momentum "
        "weight_decay augment first_std inner_std"
    }
    params: Params

    def noise(self) -> Noise:
        """Gaussian noise."""
        return GaussianNoise(self.params.first_std, self.params.inner_std)
