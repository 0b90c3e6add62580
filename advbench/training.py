"""The one training loop: epochs, precision, learning-rate stages, progress, mid-training checkpoints.

Every random choice of step `s` is seeded by `(seed, s)`, so a checkpoint holds no random state and a run
that goes on from one is the run that was never interrupted, bit for bit.
"""

from __future__ import annotations

import copy
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advbench import api, ascent
from advbench.api import Data, Defense, Field, Progress, Threat, TrainContext
from advbench.classifier import Classifier, isolated_rng
from advbench.datasets import check_images, check_labels
from advbench.errors import InputError, PluginError
from advbench.posterior import GaussianPosterior, PointPosterior, Posterior
from advbench.seeds import derive

Terms = Mapping[str, Tensor]


class TrainParams(api.Params):
    """Hyperparameters of every training by gradient steps."""

    stages: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(40, 10),
        min_length=1,
        description="epochs at each learning rate; the rate is divided by 10 from one stage to the next "
        "(Adv-BNN section 4: 80, 60, 40, 20)",
    )
    batch_size: int = Field(default=128, ge=1, description="images a step; Adv-BNN released code: 128")
    lr: float = Field(default=1e-3, gt=0, description="learning rate of the first stage; not from a paper")
    optimizer: Literal["adam", "sgd"] = Field(default="adam", description="Adam, or SGD with momentum 0.9")
    weight_decay: float = Field(default=0.0, ge=0, description="L2 penalty of the optimiser, per step")
    augment: bool = Field(
        default=False,
        description="random crop after padding by 4 pixels, and horizontal flip (Adv-BNN, CIFAR-10)",
    )


@dataclass
class TrainState:
    """What a training is made of at one moment; with the seed it determines all that follows."""

    clf: Classifier
    optimizer: torch.optim.Optimizer
    step: int = 0

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state as tensors and JSON values."""
        tensors, values = self.clf.export()
        out = {f"clf.{name}": tensor for name, tensor in tensors.items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            out |= {f"optimizer.{index}.{slot}": tensor for slot, tensor in slots.items()}
        return out, {"step": self.step, **values}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take over what `export` gave."""
        clf_tensors = {n.removeprefix("clf."): t for n, t in tensors.items() if n.startswith("clf.")}
        self.clf.posterior.restore(clf_tensors)
        for name, buffer in self.clf.module.named_buffers():
            buffer.copy_(clf_tensors[f"buffer.{name}"])
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, slot = name.split(".")
                slots.setdefault(int(index), {})[slot] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        self.step = values["step"]


class GradientDefense(Defense):
    """A training by gradient steps. Methods override `posterior`, `perturb` or `loss`, rarely `update`."""

    params: TrainParams

    def posterior(self, module: nn.Module) -> Posterior:
        """The distribution over the module's weights that is trained; the weights themselves by default."""
        return PointPosterior(module)

    def perturb(self, clf: Classifier, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """The images to train on in place of `x`; `x` by default."""
        return x

    def passes_per_image(self) -> float:
        """One pass an epoch and image, beside those of `perturb`."""
        return float(sum(self.params.stages))

    @abstractmethod
    def loss(self, clf: Classifier, x: Tensor, y: Tensor, count: int) -> tuple[Terms, Tensor]:
        """The terms whose sum is descended, and the logits `(batch, classes)`.

        Args:
            clf: the classifier being trained, in training mode.
            x: images of the step, after `perturb`.
            y: labels `(batch,)`.
            count: number of training images N.
        """

    def update(self, state: TrainState, x: Tensor, y: Tensor, count: int, context: TrainContext) -> dict[str, Tensor]:
        """One step: perturb, evaluate the loss, descend. Returns scalars to watch, on the device."""
        generator = context.generator("perturb", state.step)
        state.optimizer.zero_grad(set_to_none=True)
        with _autocast(context):
            state.clf.module.eval()
            x = self.perturb(state.clf, x, y, generator)
            state.clf.module.train()
            terms, logits = self.loss(state.clf, x, y, count)
        total = torch.stack([term.float() for term in terms.values()]).sum()
        total.backward()  # type: ignore[no-untyped-call]
        state.optimizer.step()
        accuracy = (logits.argmax(1) == y).float().mean()
        return {**{name: term.detach() for name, term in terms.items()}, "train accuracy": accuracy}

    def fit(self, module: nn.Module, data: Data, context: TrainContext | None = None) -> Classifier:
        """Train; see `advbench.api.Defense.fit`.

        Raises:
            PluginError: a term of the loss is not finite; names step and term.
        """
        _check_data(module, data)
        method = self.for_dataset(data.name)
        context = context or TrainContext()
        state = method._initial(module, data, context)
        method._run(state, data.to(context.resources.device), context)
        state.clf.module.eval()
        return state.clf.requires_grad_(False)

    def _initial(self, module: nn.Module, data: Data, context: TrainContext) -> TrainState:
        own = copy.deepcopy(module).to(context.resources.device).requires_grad_(True)
        clf = Classifier(own, self.posterior(own))
        _check_fit(clf, data, context.resources.device)
        params = self.params
        trainable = clf.posterior.trainable()
        optimizer: torch.optim.Optimizer
        if params.optimizer == "adam":
            optimizer = torch.optim.Adam(trainable, lr=params.lr, weight_decay=params.weight_decay)
        else:
            optimizer = torch.optim.SGD(trainable, lr=params.lr, momentum=0.9, weight_decay=params.weight_decay)
        state = TrainState(clf, optimizer)
        saved = context.checkpoint.load() if context.checkpoint else None
        if saved is not None:
            with torch.no_grad():
                state.restore(*saved)
        return state

    def _run(self, state: TrainState, data: Data, context: TrainContext) -> None:
        params = self.params
        per_epoch = -(-len(data) // params.batch_size)
        total = per_epoch * sum(params.stages)
        boundaries = [per_epoch * sum(params.stages[: i + 1]) for i in range(len(params.stages))]
        watch = _Watch(state.step, total, context, sync_every=1 if data.images.device.type == "cpu" else 50)
        saved_at = time.monotonic()
        for index in _batches(state.step, total, per_epoch, len(data), context.seed):
            stage = sum(state.step >= boundary for boundary in boundaries)
            for group in state.optimizer.param_groups:
                group["lr"] = params.lr * 0.1**stage
            x, y = data.batch(index.to(data.images.device))
            if params.augment:
                x = crop_and_flip(x, context.generator("augment", state.step))
            state.clf.reseed(derive(context.seed, "weights", state.step))
            with isolated_rng(derive(context.seed, "module", state.step), x.device):
                watch.add(self.update(state, x, y, len(data), context))
            state.step += 1
            if context.checkpoint and time.monotonic() - saved_at >= context.checkpoint_seconds:
                watch.flush()
                context.checkpoint.save(*state.export())
                saved_at = time.monotonic()
        watch.flush()


class ErmLoss(GradientDefense):
    """Mean cross-entropy of the weights themselves."""

    def loss(self, clf: Classifier, x: Tensor, y: Tensor, count: int) -> tuple[Terms, Tensor]:
        """Mean cross-entropy, in nats."""
        logits = clf(x)
        return {"loss": F.cross_entropy(logits.float(), y)}, logits


class BayesParams(TrainParams):
    """Hyperparameters of training a mean-field Gaussian posterior."""

    prior_std: float = Field(
        default=0.15,
        gt=0,
        description="standard deviation s0 of the Gaussian prior; Adv-BNN Table 2: 0.05 or 0.15",
    )
    init_std: float | None = Field(
        default=None,
        gt=0,
        description="initial standard deviation of each weight, by default prior_std (Adv-BNN)",
    )
    kl_weight: float = Field(
        default=0.02,
        ge=0,
        description="alpha of Adv-BNN eq. 13, dimensionless: the loss is CE + alpha / N * KL in nats",
    )
    kl_scope: Literal["all", "classifier"] = Field(
        default="all",
        description="weights counted in the KL: all, or the last linear layer's alone, as Adv-BNN's released VGG",
    )


class ElboLoss(GradientDefense):
    """Bayes by backprop: mean cross-entropy at one draw, plus kl_weight / N times the KL to the prior."""

    params: BayesParams

    def posterior(self, module: nn.Module) -> Posterior:
        """A Gaussian around the module's weights."""
        return GaussianPosterior(module, self.params.init_std or self.params.prior_std)

    def loss(self, clf: Classifier, x: Tensor, y: Tensor, count: int) -> tuple[Terms, Tensor]:
        """Adv-BNN eq. 13, per image and in nats: mean cross-entropy, and kl_weight / N * KL."""
        logits = clf(x)
        posterior = clf.posterior
        assert isinstance(posterior, GaussianPosterior)
        names = last_linear(clf.module) if self.params.kl_scope == "classifier" else None
        with torch.autocast(x.device.type, enabled=False):
            kl = posterior.kl(self.params.prior_std, names) * (self.params.kl_weight / count)
        return {"loss": F.cross_entropy(logits.float(), y), "kl": kl}, logits


class AdversarialParams(TrainParams):
    """Hyperparameters of adversarial training: those of any training, and of its inner maximisation."""

    eps: float = Field(default=8 / 255, ge=0, description="radius of the training's ball, in pixels in [0, 1]")
    norm: api.Norm = Field(default="linf", description="norm of the training's ball")
    steps: int = Field(default=10, ge=1, description="PGD steps in training; Adv-BNN Table 2: 10")
    step_size: float | None = Field(
        default=None,
        gt=0,
        description="length of a step in eps, by default 2.5 / steps (linf, Madry 2018) or 10 / steps (l2)",
    )
    random_start: bool = Field(
        default=True, description="start from a point of the ball; Adv-BNN's released code: false"
    )


class PgdPerturbation(GradientDefense):
    """Train on PGD examples crafted at each step, fresh weights at each of their steps (Adv-BNN eq. 3).

    Crafting runs the module in evaluation mode: batch norm's running statistics come from the passes that
    train, and dropout does not blur the ascent.
    """

    params: AdversarialParams

    def passes_per_image(self) -> float:
        """An epoch passes each image once for each PGD step and once to train."""
        return super().passes_per_image() * (1 + self.params.steps)

    def perturb(self, clf: Classifier, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """PGD examples of `x`."""
        params = self.params
        threat = Threat(params.norm, params.eps)
        return ascent.ascend(
            clf,
            x,
            y,
            threat,
            steps=params.steps,
            step_size=ascent.step_length(threat, params.steps, params.step_size),
            start=ascent.random_start(x, threat, generator) if params.random_start else x,
        )


def _check_data(module: nn.Module, data: Data) -> None:
    if not isinstance(module, nn.Module) or isinstance(module, Classifier):
        raise InputError("module to train", expected="an nn.Module that is no Classifier", got=type(module).__name__)
    if not isinstance(data, Data):
        raise InputError("training data", expected="an advbench.Data", got=type(data).__name__)
    check_images(data.images, "training images")
    check_labels(data.labels, len(data.images), data.classes, "training labels")
    if len(data) == 0:
        raise InputError("training data", expected="at least one image", got=0)


@torch.no_grad()
def _check_fit(clf: Classifier, data: Data, device: str) -> None:
    """Refuse a module whose output does not fit the classes, before the first step."""
    clf.module.eval()
    x = data.batch(slice(1))[0].to(device)
    with isolated_rng(0, x.device):
        outputs = clf(x).shape[1]
    if outputs != data.classes:
        raise InputError("the module's output", expected=f"{data.classes} logits, one a class", got=outputs)


def last_linear(module: nn.Module) -> list[str]:
    """Parameter names of the last linear layer: a net's classifier.

    Raises:
        InputError: the module has none.
    """
    names = [name for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    if not names:
        raise InputError("kl_scope 'classifier'", expected="a module with a linear layer", remedy="use 'all'")
    prefix = names[-1] + "." if names[-1] else ""
    return [name for name, _ in module.named_parameters() if name.startswith(prefix)]


def crop_and_flip(x: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Each image zero-padded, cropped at random to its size and flipped left-right with probability 1/2."""
    batch, _, height, width = x.shape
    padded = F.pad(x, (padding, padding, padding, padding))
    corners = torch.randint(0, 2 * padding + 1, (2, batch, 1), generator=generator, device=x.device)
    flip = torch.rand((batch, 1), generator=generator, device=x.device) < 0.5
    rows = corners[0] + torch.arange(height, device=x.device)
    columns = torch.arange(width, device=x.device).expand(batch, width)
    columns = corners[1] + torch.where(flip, width - 1 - columns, columns)
    image = torch.arange(batch, device=x.device)[:, None, None]
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _autocast(context: TrainContext) -> torch.autocast:
    device = torch.device(context.resources.device).type
    return torch.autocast(device, torch.bfloat16, enabled=context.precision == "bfloat16")


def _batches(first: int, total: int, per_epoch: int, count: int, seed: int) -> Iterator[Tensor]:
    """Index tensors of steps `first` to `total`: each epoch one permutation in parts of nearly equal size."""
    parts: tuple[Tensor, ...] = ()
    for step in range(first, total):
        epoch, position = divmod(step, per_epoch)
        if not parts or position == 0:
            generator = torch.Generator().manual_seed(derive(seed, "order", epoch))
            parts = torch.randperm(count, generator=generator).tensor_split(per_epoch)
        yield parts[position]


class _Watch:
    """Collects each step's scalars on the device; checks and reports them now and then, to sync rarely."""

    def __init__(self, step: int, total: int, context: TrainContext, sync_every: int) -> None:
        self._step = step
        self._total = total
        self._context = context
        self._sync_every = sync_every
        self._pending: list[dict[str, Tensor]] = []

    def add(self, values: dict[str, Tensor]) -> None:
        self._pending.append(values)
        if len(self._pending) >= self._sync_every:
            self.flush()

    def flush(self) -> None:
        if not self._pending:
            return
        names = list(self._pending[0])
        table = torch.stack([torch.stack([row[name].float() for name in names]) for row in self._pending]).cpu()
        bad = (~table.isfinite()).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            raise PluginError(
                f"training step {self._step + row + 1} of {self._total}",
                expected=f"a finite {names[column]}",
                got=float(table[row, column]),
                remedy="lower lr, or kl_weight where the KL is the term",
            )
        self._step += len(self._pending)
        self._pending.clear()
        self._context.progress(Progress(self._step, self._total, dict(zip(names, table[-1].tolist(), strict=True))))
