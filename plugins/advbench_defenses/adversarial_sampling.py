"""Adversarial sampling: a Bayesian net trained on adversarial draws of its weights."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from advbench.models import Classifier, Draw
from advbench.training import BayesParams, ElboLoss, Field, Paper, Terms, gaussian


class AdversarialSampling(ElboLoss):
    """Bayes by backprop on a random draw and on an adversarial draw, whose noise increases the loss.

    Zhang et al. 2022, "Improving Bayesian Neural Networks by Adversarial Sampling", Algorithm 1 and eq. 11:
    minimise (1 - lambda) L_p + lambda L_adv + L_r. L_p is the cross-entropy at a fresh draw, L_adv at the noise after
    `steps` signed ascent steps of length `alpha`, L_r = kl_weight / N * KL(q || p). First order: gradients with respect
    to mu and sigma are taken at the final noise only. lambda = 0 is `bnn`.

    Errata. The KL of eq. 2 is KL(q || p). Eq. 5 lacks a minus sign. The right side of eq. 13 starts from w_adv. Line 5
    of Algorithm 1 means the loss at w_adv. The released code scales L_r by 1 - lambda, starts sigma at 1.16 and never
    zeroes the gradient of the noise, so that later steps accumulate old gradients; here each step uses a fresh
    gradient. The ascent runs with the module in evaluation mode: statistics of batch norm come from training passes
    only.
    """

    version = "2"
    paper = Paper(
        title="Improving Bayesian Neural Networks by Adversarial Sampling",
        authors="Zhang, Hua, Song, Wang, Xue, Ma, Guan",
        year=2022,
        link="https://ojs.aaai.org/index.php/AAAI/article/view/21250",
    )

    class Params(BayesParams):
        """Hyperparameters of adversarial sampling."""

        adversarial_weight: float = Field(
            default=0.8, ge=0, le=1, description="weight lambda of L_adv in eq. 11; paper: 0.8"
        )
        alpha: float = Field(
            default=0.02, ge=0, description="step size of the noise, in standard deviations; paper: 0.02"
        )
        steps: int = Field(default=5, ge=1, description="number of signed steps of the noise; paper: 5")
        kl_weight: float = Field(
            default=0.01,
            ge=0,
            description="weight of the KL, dimensionless: L_r = kl_weight / N * KL in nats; paper: 0.01",
        )

    # Moving all weights at once by alpha * steps sigma increases the loss far more than any draw, so sigma must start
    # small if epochs are few.
    presets = {
        "digits": {"stages": (35, 10), "batch_size": 64, "lr": 3e-3, "init_std": 0.01},
        "mnist": {"stages": (4, 1), "init_std": 0.01},
        "cifar10": {"stages": (40, 20), "augment": True, "prior_std": 0.05, "init_std": 0.005},
        # Table 2 starts from erm: init_from="erm".
        "paper": {
            "stages": (80, 60, 40, 20),
            "batch_size": 100,
            "lr": 0.01,
            "augment": True,
            "prior_std": 0.15,
            "init_std": math.exp(0.15),
            "kl_weight": 0.01,
            "adversarial_weight": 0.8,
            "alpha": 0.02,
            "steps": 5,
        },
    }
    sources = {
        "paper": "stages lr kl_weight adversarial_weight alpha steps",
        "released code; its sigma starts at exp(0.15)": "batch_size augment prior_std init_std",
    }
    params: Params

    def passes_per_image(self) -> float:
        """Per epoch, one pass per image at the fresh draw, at each step of the noise and at the final noise."""
        extra = self.params.steps + 1 if self.params.adversarial_weight else 0
        return super().passes_per_image() * (1 + extra)

    def loss(self, clf: Classifier, x: Tensor, y: Tensor, count: int) -> tuple[Terms, Tensor]:
        """Terms of eq. 11, in nats per image."""
        share = self.params.adversarial_weight
        logits = clf(x)
        terms = {"loss": F.cross_entropy(logits.float(), y), "kl": self.kl(clf, count)}
        if share:
            worst = self.adversarial_draw(clf, x, y)
            terms["loss"] = terms["loss"] * (1 - share)
            terms["adversarial loss"] = F.cross_entropy(clf.at(worst, x).float(), y) * share
        return terms, logits

    def adversarial_draw(self, clf: Classifier, x: Tensor, y: Tensor) -> Draw:
        """A fresh draw with noise ascended to increase the loss; differentiable in mean and log standard deviation."""
        posterior = gaussian(clf)
        mean, std = posterior.mean.detach(), posterior.log_std.detach().exp()
        seed = clf.next_seed()
        noise = posterior.noise(torch.Generator(posterior.device).manual_seed(seed))
        training = clf.module.training
        clf.module.eval()
        for _ in range(self.params.steps):
            noise.requires_grad_(True)
            logits = clf.at(Draw(posterior.layout.views(mean + std * noise), seed), x)
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits.float(), y), noise)
            noise = noise.detach() + self.params.alpha * gradient.sign()
        clf.module.train(training)
        return Draw(posterior.weights(noise), seed)
