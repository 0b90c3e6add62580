"""TRADES: cross-entropy on clean images with a robustness regulariser."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from advbench.attacks import Threat, project, steepest, step_length
from advbench.models import Classifier
from advbench.training import AscentParams, ErmLoss, Field, Paper, Terms, images_apart


class TRADES(ErmLoss):
    """Minimise CE(f(x), y) + beta * max over the ball of KL(p(x) || p(x')), a trade-off of accuracy and robustness.

    Zhang et al. 2019, "Theoretically Principled Trade-off between Robustness and Accuracy", eq. 5 and Algorithm 1. The
    inner maximisation is a steepest ascent of the KL from the image plus a small Gaussian step, because the gradient is
    zero at the image itself; p(x) is constant in the inner problem and trained in the outer one. Both terms are means
    over images. beta = 0 is `erm`.

    Departures. In l2 the steps are those of `pgd_at`; the released code uses SGD with decay. Clean images pass once per
    step in training mode, and twice in the released code: running statistics of batch norm see them once.
    """

    version = "1"
    paper = Paper(
        title="Theoretically Principled Trade-off between Robustness and Accuracy",
        authors="Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan",
        year=2019,
        link="https://arxiv.org/abs/1901.08573",
    )

    class Params(AscentParams):
        """Hyperparameters of TRADES."""

        beta: float = Field(
            default=6.0,
            ge=0,
            description="weight of the KL, dimensionless (1 / lambda); paper: 6 (CIFAR-10), 1 (MNIST)",
        )
        start_std: float = Field(
            default=0.001,
            gt=0,
            description="standard deviation of the Gaussian step from the image to the start of the ascent, for pixels "
            "in [0, 1]; Algorithm 1 and released code: 0.001",
        )

    presets = {
        "digits": {"stages": (40, 10), "batch_size": 64, "eps": 0.15},
        "mnist": {"stages": (4, 1), "eps": 0.3},
        "cifar10": {"stages": (40, 20), "augment": True, "eps": 8 / 256},
        "paper": {
            "stages": (74, 2),
            "optimizer": "sgd",
            "lr": 0.1,
            "weight_decay": 2e-4,
            "batch_size": 128,
            "augment": True,
            "eps": 0.031,
            "steps": 10,
            "step_size": 0.007 / 0.031,
            "beta": 6.0,
        },
    }
    sources = {
        "section 5.3 and released code, CIFAR-10": "stages optimizer lr weight_decay batch_size augment "
        "eps steps step_size beta"
    }
    params: Params

    def passes_per_image(self) -> float:
        """Per epoch, one pass per image for each ascent step, and two to train, clean and perturbed."""
        return super().passes_per_image() * (2 + self.params.steps if self.params.beta else 1)

    def separable(self, clf: Classifier) -> bool:
        """True as for other losses that are means over images."""
        return type(self).loss is TRADES.loss and images_apart(clf)

    def perturb(self, clf: Classifier, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """Each image and the point of its ball with the largest KL, `(batch, 2, ...)`."""
        params = self.params
        if not params.beta:
            return x
        threat = Threat(params.norm, params.eps)
        with torch.no_grad():
            clean = clf(x).float().log_softmax(1)
        noise = torch.empty_like(x).normal_(0, params.start_std, generator=generator)
        moved = project(x + noise, x, threat)
        length = step_length(threat, params.steps, params.step_size)
        for _ in range(params.steps):
            gradient = clf.input_gradient(moved, clean, divergence).value
            moved = project(moved + length * steepest(gradient, threat), x, threat)
        return torch.stack([x, moved], 1)

    def loss(self, clf: Classifier, x: Tensor, y: Tensor, count: int) -> tuple[Terms, Tensor]:
        """Mean cross-entropy on clean images and beta times the mean KL, both in nats; logits of the clean images."""
        if not self.params.beta:
            return super().loss(clf, x, y, count)
        clean, moved = x.unbind(1)
        terms, logits = super().loss(clf, clean, y, count)
        kl = divergence(clf(moved).float(), logits.float().log_softmax(1)).mean()
        return {**terms, "divergence": self.params.beta * kl}, logits


def divergence(logits: Tensor, clean: Tensor) -> Tensor:
    """KL(p(x) || p(x')) of each image, `(batch,)`, in nats.

    Args:
        logits: logits at x', `(batch, classes)`.
        clean: log-probabilities at x, `(batch, classes)`.
    """
    return F.kl_div(logits.float().log_softmax(1), clean, reduction="none", log_target=True).sum(1)
