"""Adv-BNN: adversarial training of a Bayesian neural network."""

from __future__ import annotations

from advbench.training import AdversarialParams, BayesParams, ElboLoss, Paper, PgdPerturbation


class AdvBNN(PgdPerturbation, ElboLoss):
    """Adversarial training of a mean-field Gaussian posterior.

    Liu et al. 2019, "Adv-BNN", Algorithm 1: PGD on the images with fresh weights at each step (eq. 3), then
    one Bayes-by-backprop step on the adversarial batch, with kl_weight / N times the KL to N(0, prior_std^2)
    (eq. 6 and 13).

    Departures. The paper includes the KL of all weights with alpha 1 for CIFAR-10; its released code includes the last
    linear layer only (`kl_scope="classifier"`), and with all weights at alpha 1 VGG16 does not train. The defaults
    include all weights with a small alpha, and sigma starts below that of the prior, its initial value in the paper.
    The backward pass of RandLayer in the appendix is correct at alpha 1 only; here gradients are computed by autograd.
    PGD has a random start, unlike in the released code.
    """

    version = "2"
    paper = Paper(
        title="Adv-BNN: Improved Adversarial Defense through Robust Bayesian Neural Network",
        authors="Liu, Li, Wu, Hsieh",
        year=2019,
        link="https://arxiv.org/abs/1810.01279",
    )

    class Params(AdversarialParams, BayesParams):
        """Hyperparameters of Adv-BNN."""

    presets = {
        "digits": {"stages": (35, 10), "batch_size": 64, "lr": 3e-3, "eps": 0.15},
        "mnist": {"stages": (4, 1), "eps": 0.3},
        "cifar10": {"stages": (40, 20), "augment": True, "prior_std": 0.05, "init_std": 0.02, "eps": 8 / 256},
        "paper": {
            "stages": (80, 60, 40, 20),
            "batch_size": 128,
            "lr": 0.01,
            "augment": True,
            "prior_std": 0.05,
            "init_std": 0.05,
            "kl_weight": 1.0,
            "kl_scope": "classifier",
            "eps": 8 / 256,
            "steps": 10,
            "step_size": 0.224,
            "random_start": False,
        },
    }
    sources = {
        "Table 2": "prior_std init_std kl_weight eps steps",
        "released code, CIFAR-10; its step is 0.007 long": "stages batch_size lr augment "
        "kl_scope step_size random_start",
    }
    params: Params
