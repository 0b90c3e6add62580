"""Training with an optimiser: plain, variational and adversarial parts that methods combine."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from advbench.attacks.ascent import ascend, step_length
from advbench.attacks.ball import random_start
from advbench.attacks.base import Goal, Norm, Threat
from advbench.errors import InputError
from advbench.models.classifier import Classifier
from advbench.models.noise import Noise, checked_noise
from advbench.models.posterior import (
    GaussianPosterior,
    PointPosterior,
    Posterior,
    gaussian_statistics,
    prior_divergence,
)
from advbench.registry.params import Field, Params
from advbench.training.base import TrainContext
from advbench.training.loop import LoopDefense, LoopParams, TrainState, autocast
from advbench.training.optimizers import SGD, Adam, Optimizer
from advbench.training.returned import Terms, checked, checked_images, checked_loss


class TrainParams(LoopParams):
    """Hyperparameters shared by all training with an optimiser."""

    optimizer: Literal["adam", "sgd"] = Field(default="adam", description="optimiser: Adam, or SGD with `momentum`")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum of SGD; APD section 5.2: 0")


class GradientDefense(LoopDefense):
    """Base class of training with an optimiser. Methods override `posterior`, `noise`, `perturb` or `loss`."""

    Params: ClassVar[type[Params]] = TrainParams
    params: TrainParams
    accuracy: ClassVar[str] = "train accuracy"

    def posterior(self, module: nn.Module) -> Posterior:
        """The distribution over the module's weights that is trained; the weights themselves by default."""
        return PointPosterior(module)

    def noise(self) -> Noise | None:
        """Noise inside the module, in training and in prediction; none by default."""
        return None

    def perturb(self, clf: Classifier, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """Training images derived from `x`; `x` itself by default."""
        return x

    def passes_per_image(self) -> float:
        """One pass per epoch and image, in addition to those of `perturb`."""
        return float(sum(self.params.stages))

    @abstractmethod
    def loss(self, clf: Classifier, x: Tensor, y: Tensor, count: int) -> tuple[Terms, Tensor]:
        """Terms of the loss, which are summed, and the logits `(batch, classes)`.

        Args:
            clf: the classifier being trained, in training mode.
            x: images of the minibatch, after `perturb`.
            y: labels `(batch,)`.
            count: number of training images N.
        """

    def begin(self, module: nn.Module, steps: int, count: int, context: TrainContext) -> TrainState:
        """The classifier and its optimiser."""
        made, noise = self.posterior(module), self.noise()
        posterior = checked(self, "posterior", made, Posterior, "write: return GaussianPosterior(module)")
        clf = Classifier(module.train(), posterior, noise=False if noise is None else checked_noise(self, noise))
        params = self.params
        free = clf.posterior.undecayed()
        decayed = [p for p in clf.posterior.trainable() if all(p is not other for other in free)]
        groups = [{"params": decayed, "weight_decay": params.weight_decay}, {"params": free, "weight_decay": 0.0}]
        optimizer: Optimizer
        if params.optimizer == "adam":
            optimizer = Adam(groups, lr=params.lr)
        else:
            optimizer = SGD(groups, lr=params.lr, momentum=params.momentum)
        return TrainState(clf, steps, {"main": optimizer})

    def separable(self, clf: Classifier) -> bool:
        """True if the loss is a mean over images at shared draws, so that it can be summed over chunks."""
        return type(self).loss in (ErmLoss.loss, MixedLoss.loss, VariationalLoss.loss) and images_apart(clf)

    def update(self, state: TrainState, x: Tensor, y: Tensor, count: int, context: TrainContext) -> dict[str, Tensor]:
        """Take one step: perturb, evaluate the loss, descend. Chunks share the draws of the step."""
        generator = context.generator("perturb", state.step)
        optimizer = state.optimizers["main"]
        optimizer.zero_grad()
        clf = state.clf
        chunk = (context.resources.chunk if self.separable(clf) else None) or len(x)
        clf.chunk = context.resources.chunk
        if type(self).perturb is not GradientDefense.perturb:
            with autocast(context), clf.attacked(y):
                clf.module.eval()
                x = checked_images(self, self.perturb(clf, x, y, generator), len(x))
        if not clf.module.training:
            clf.module.train()
        sums: dict[str, Tensor] = {}
        for begin in range(0, len(x), chunk):
            images, labels = x[begin : begin + chunk], y[begin : begin + chunk]
            with autocast(context), clf.isolated() if len(images) < len(x) else nullcontext():
                terms, logits = checked_loss(self, self.loss(clf, images, labels, count), len(images))
            share = len(images) / len(x)
            total = torch.stack([term.float() for term in terms.values()]).sum()
            (total * share).backward()  # type: ignore[no-untyped-call]
            accuracy = (logits.argmax(1) == labels).float().mean()
            for name, value in {**terms, self.accuracy: accuracy}.items():
                part = value.detach() * share
                sums[name] = sums[name] + part if name in sums else part
        optimizer.step()
        return sums


def images_apart(clf: Classifier) -> bool:
    """True if images do not interact in a training pass: no batch norm, and no noise drawn for a batch."""
    return not clf.noise and not any(isinstance(part, _BatchNorm) for part in clf.module.modules())


class ErmLoss(GradientDefense):
    """Mean cross-entropy of deterministic weights."""

    def loss(self, clf: Classifier, x: Tensor, y: Tensor, count: int) -> tuple[Terms, Tensor]:
        """Mean cross-entropy, in nats."""
        logits = clf(x)
        return {"loss": F.cross_entropy(logits.float(), y)}, logits


class MixedParams(TrainParams):
    """Hyperparameters of training on perturbed and clean images."""

    clean_weight: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="weight of the loss on clean images; 0.5 for all baselines in BAL's released code",
    )


class MixedLoss(ErmLoss):
    """Weighted mean of the cross-entropies on perturbed and clean images."""

    Params: ClassVar[type[Params]] = MixedParams
    params: MixedParams

    def passes_per_image(self) -> float:
        """One more pass per epoch and image if clean images have a weight."""
        return super().passes_per_image() * (2 if self.params.clean_weight else 1)

    def beside(self, x: Tensor, moved: Tensor) -> Tensor:
        """Result of `perturb`: perturbed images, or pairs with clean ones if these have a weight, `(batch, 2, ...)`."""
        return torch.stack([moved, x], 1) if self.params.clean_weight else moved

    def loss(self, clf: Classifier, x: Tensor, y: Tensor, count: int) -> tuple[Terms, Tensor]:
        """Mean cross-entropy, in nats, and the logits of the perturbed images."""
        share = self.params.clean_weight
        if not share:
            return super().loss(clf, x, y, count)
        moved, clean = x.unbind(1)
        terms, logits = super().loss(clf, moved, y, count)
        beside, _ = super().loss(clf, clean, y, count)
        return {"loss": (1 - share) * terms["loss"] + share * beside["loss"]}, logits


class VariationalParams(TrainParams):
    """Hyperparameters of training a mean-field Gaussian posterior."""

    init_std: float = Field(default=0.05, gt=0, description="initial standard deviation of each weight")
    kl_weight: float = Field(
        default=0.02,
        ge=0,
        description="weight alpha of the KL in Adv-BNN eq. 13, dimensionless: the loss is CE + alpha / N * KL in nats",
    )
    kl_scope: Literal["all", "classifier"] = Field(
        default="all",
        description="weights in the KL: all, or those of the last linear layer only, as in Adv-BNN's released VGG",
    )


class VariationalLoss(GradientDefense):
    """Bayes by backprop: mean cross-entropy at one draw plus kl_weight / N times a divergence of the weights."""

    Params: ClassVar[type[Params]] = VariationalParams
    params: VariationalParams

    def posterior(self, module: nn.Module) -> Posterior:
        """A Gaussian around the module's weights."""
        return GaussianPosterior(module, self.params.init_std)

    @abstractmethod
    def divergence(self, mean: Tensor, log_std: Tensor) -> Tensor:
        """The regulariser of each weight, in nats, from its mean and log standard deviation."""

    def kl(self, clf: Classifier, count: int) -> Tensor:
        """kl_weight / N times the sum of the regulariser over the weights of `kl_scope`, in nats per image."""
        names = last_linear(clf.module) if self.params.kl_scope == "classifier" else None
        with torch.autocast(clf.posterior.device.type, enabled=False):
            total = self.total(gaussian(clf), names)
        return total * (self.params.kl_weight / count)

    def total(self, posterior: GaussianPosterior, names: list[str] | None) -> Tensor:
        """Sum of the regulariser over the weights of `names`, by default all; a scalar in nats."""
        return self.divergence(*posterior.selected(names)).sum()

    def loss(self, clf: Classifier, x: Tensor, y: Tensor, count: int) -> tuple[Terms, Tensor]:
        """Mean cross-entropy and kl_weight / N * KL (Adv-BNN eq. 13), in nats per image."""
        logits = clf(x)
        return {"loss": F.cross_entropy(logits.float(), y), "kl": self.kl(clf, count)}, logits

    def statistics(self, clf: Classifier) -> Mapping[str, Any]:
        """Those of a Gaussian posterior, and `kld`, the method's own regulariser; see `gaussian_statistics`."""
        if not isinstance(clf.posterior, GaussianPosterior):
            return super().statistics(clf)
        return gaussian_statistics(clf.posterior, self.divergence)


class BayesParams(VariationalParams):
    """Hyperparameters of variational inference with a fixed Gaussian prior."""

    prior_std: float = Field(
        default=0.15,
        gt=0,
        description="standard deviation s0 of the Gaussian prior; Adv-BNN Table 2: 0.05 or 0.15",
    )


class ElboLoss(VariationalLoss):
    """Variational inference with the prior N(0, prior_std^2) on each weight (Blundell et al. 2015)."""

    Params: ClassVar[type[Params]] = BayesParams
    params: BayesParams

    def divergence(self, mean: Tensor, log_std: Tensor) -> Tensor:
        """KL to the prior (Adv-BNN eq. 6)."""
        return prior_divergence(mean, log_std, self.params.prior_std)

    def total(self, posterior: GaussianPosterior, names: list[str] | None) -> Tensor:
        """Sum of the KL, with fewer passes over the weights."""
        if type(self).divergence is not ElboLoss.divergence:
            return super().total(posterior, names)
        return posterior.kl(self.params.prior_std, names)


def gaussian(clf: Classifier) -> GaussianPosterior:
    """Return the classifier's posterior, verified to be Gaussian.

    Raises:
        InputError: the posterior is of another kind.
    """
    if not isinstance(clf.posterior, GaussianPosterior):
        raise InputError("the classifier's posterior", expected="gaussian", got=clf.posterior.kind)
    return clf.posterior


class BallParams(TrainParams):
    """Hyperparameters of training against an adversary in a ball."""

    eps: float = Field(default=8 / 255, ge=0, description="radius of the ball in training, for pixels in [0, 1]")
    norm: Norm = Field(default="linf", description="norm of the ball in training")


class AscentParams(BallParams):
    """Hyperparameters of training against an adversary who takes gradient steps."""

    steps: int = Field(default=10, ge=1, description="number of PGD steps in training; Adv-BNN Table 2: 10")
    step_size: float | None = Field(
        default=None,
        gt=0,
        description="step size as a fraction of eps; None for 2.5 / steps (linf, Madry et al. 2018) or 10 / steps (l2)",
    )


class AdversarialParams(AscentParams):
    """Hyperparameters of adversarial training, including its inner maximisation."""

    random_start: bool = Field(default=True, description="random start in the ball; Adv-BNN's released code: false")


class PgdPerturbation(GradientDefense):
    """Training on PGD examples, with a fresh draw of weights at each PGD step (Adv-BNN eq. 3).

    Crafting runs the module in evaluation mode: running statistics of batch norm come from training passes only, and
    dropout does not perturb the ascent.
    """

    Params: ClassVar[type[Params]] = AdversarialParams
    params: AdversarialParams
    accuracy = "robust train accuracy"

    def passes_per_image(self) -> float:
        """Per epoch, one pass per image for each PGD step and one to train."""
        return super().passes_per_image() + self.params.steps * sum(self.params.stages)

    def perturb(self, clf: Classifier, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """PGD examples of `x`."""
        params = self.params
        threat = Threat(params.norm, params.eps)
        return ascend(
            clf,
            x,
            Goal(y),
            threat,
            steps=params.steps,
            step_size=step_length(threat, params.steps, params.step_size),
            start=random_start(x, threat, generator) if params.random_start else x,
        )


def last_linear(module: nn.Module) -> list[str]:
    """Parameter names of the last linear layer, the classifier of the net.

    Raises:
        InputError: the module has no linear layer.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    if not layers:
        remedy = "use another net (for a divergence of all weights: kl_scope='all')"
        raise InputError("last layer of the net", expected="a module with a linear layer", got="none", remedy=remedy)
    own = {id(parameter) for parameter in layers[-1].parameters()}  # a tied weight is listed under its first name
    return [name for name, parameter in module.named_parameters() if id(parameter) in own]
