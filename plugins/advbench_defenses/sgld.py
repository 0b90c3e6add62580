"""SGLD: samples of the posterior by stochastic-gradient Langevin dynamics."""

from __future__ import annotations

from advbench.training import LangevinChains, Paper, SGLDParams


class SGLD(LangevinChains):
    """Stochastic-gradient Langevin dynamics; the latest samples are kept.

    Welling and Teh 2011 with a fixed step size, as in APD section 3: theta <- theta - lr/2 (grad of the mean loss +
    weight_decay theta) + N(0, lr / N), which samples exp(-N (mean loss + weight_decay/2 |theta|^2)); "SGLD" in
    APD Table 1. A draw of the classifier is one of the samples.
    """

    version = "1"
    paper = Paper(
        title="Bayesian Learning via Stochastic Gradient Langevin Dynamics",
        authors="Welling, Teh",
        year=2011,
        link="https://dl.acm.org/doi/10.5555/3104482.3104568",
    )

    class Params(SGLDParams):
        """Hyperparameters of SGLD."""

    presets = {
        "digits": {"stages": (150,), "batch_size": 64, "samples": 100},
        "mnist": {"stages": (20,), "burn_in": 5000},
        "cifar10": {"stages": (60,), "augment": True, "burn_in": 10_000},
        "paper": {
            "stages": (371,),
            "lr": 0.05,
            "weight_decay": 0.001,
            "batch_size": 100,
            "burn_in": 500,
            "interval": 20,
            "samples": 10_000,
        },
    }
    sources = {
        "APD section 5.2.1": "lr weight_decay batch_size burn_in interval",
        "APD's released code: 200,000 steps, 10,000 samples": "stages samples",
    }
    params: Params
