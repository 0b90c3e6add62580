"""Bayesian neural network sampled by adaptive Langevin dynamics, without an adversary."""

from __future__ import annotations

from advbench.training import AdaptiveChains, Paper, SGAdaLDParams


class BNNSGAdaLD(AdaptiveChains):
    """Chains of stochastic-gradient adaptive Langevin dynamics on clean images.

    "BNN" in BAL Figure 1: BAL (Ye and Zhu 2018) without the adversary, with the sampler of its eq. 10. A draw of
    the classifier is the end point of one of the chains.
    """

    version = "1"
    paper = Paper(
        title="Bayesian Adversarial Learning",
        authors="Ye, Zhu",
        year=2018,
        link="https://nips.cc/Conferences/2018/Schedule?showEvent=11664",
    )

    class Params(SGAdaLDParams):
        """Hyperparameters of a Bayesian net by SGAdaLD."""

    presets = {
        "digits": {"stages": (40, 10), "batch_size": 64},
        "mnist": {"stages": (4, 1)},
        "cifar10": {"stages": (40, 20), "augment": True},
        # Two epochs of 15 steps on each minibatch, as BAL's, are 30 epochs here.
        "paper": {
            "stages": (30,),
            "batch_size": 256,
            "init_from": "erm",
            "lr": 0.015,
            "window": 2.0,
            "damping": 0.0022,
            "chains": 5,
            "samples": 5,
            "temperature": 1e-5,
        },
    }
    sources = {
        "BAL section 5, MNIST": "stages init_from chains samples temperature",
        "BAL's released code": "batch_size lr window damping",
    }
    params: Params
