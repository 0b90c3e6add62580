"""Shared training loop: epochs, precision, learning-rate stages, progress, mid-training checkpoints.

Every random choice of step `s` is seeded by `(seed, s)`, so a checkpoint contains no random state, and a resumed run is
bit-identical to an uninterrupted one.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advbench.data.base import Data, check_images, check_labels
from advbench.errors import InputError, OutOfMemoryError, PluginError, out_of_memory
from advbench.keys import derive, isolated_rng, seed_others
from advbench.models.classifier import Classifier
from advbench.models.gradient_watch import Passes
from advbench.models.guard import check_effect, check_trained
from advbench.models.posterior import FlatLayout, PointPosterior, copy_alike
from advbench.models.saving import export_classifier
from advbench.progress import Progress
from advbench.registry import registry
from advbench.registry.params import Field, Params
from advbench.training.base import CheckpointSlot, Defense, TrainContext
from advbench.training.optimizers import Optimizer
from advbench.training.returned import checked, checked_scalars


class LoopParams(Params):
    """Hyperparameters shared by all training on minibatches."""

    stages: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(40, 10),
        min_length=1,
        description="number of epochs at each learning rate; the rate is divided by 10 after each stage "
        "(Adv-BNN section 4: 80, 60, 40, 20)",
    )
    batch_size: int = Field(default=128, ge=1, description="number of images per step; Adv-BNN's released code: 128")
    lr: float = Field(default=1e-3, gt=0, description="learning rate of the first stage; not from a paper")
    weight_decay: float = Field(
        default=0.0, ge=0, description="L2 penalty: adds weight_decay * w to the gradient of the mean loss"
    )
    augment: bool | Literal["flip"] = Field(
        default=False,
        description="random crop after padding by 4 pixels, and horizontal flip (Adv-BNN, CIFAR-10); flip: that alone",
    )
    init_from: str | None = Field(
        default=None,
        description="defense whose trained weights are the initial weights: one of the run, or trained for it with its "
        "own settings; it must be deterministic (adversarial sampling Table 2; BAL section 5: erm)",
    )


@dataclass
class TrainState:
    """State of a training between two steps; together with the seed it determines the rest of the training.

    Attributes:
        clf: the classifier in training.
        steps: total number of steps.
        optimizers: optimisers by name; the learning rate of `main` follows the stages.
        modules: auxiliary nets that are trained as well, by name.
        tensors: further state of a method, of fixed shapes, by name.
        step: number of steps done.
        rate: factor of the current stage on learning rates: 1, then 0.1, and so on.
        layout: positions of the parameters of the classifier's module in a flat vector.
    """

    clf: Classifier
    steps: int
    optimizers: dict[str, Optimizer] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    rate: float = 1.0
    layout: FlatLayout = field(init=False)

    def __post_init__(self) -> None:
        self.layout = FlatLayout(self.clf.module)

    def enter(self, rate: float) -> None:
        """Set the factor of the stage, and the learning rate of the main optimiser."""
        self.rate = rate
        if "main" in self.optimizers:
            for group in self.optimizers["main"].param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * rate

    def export(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state as tensors and JSON values."""
        tensors, values = export_classifier(self.clf)
        out = {f"clf.{name}": tensor for name, tensor in tensors.items()}
        for which, optimizer in self.optimizers.items():
            for index, slots in optimizer.state_dict()["state"].items():
                out |= {f"optimizer.{which}.{index}.{slot}": tensor for slot, tensor in slots.items()}
        for which, module in self.modules.items():
            out |= {f"module.{which}.{name}": tensor for name, tensor in module.state_dict().items()}
        out |= {f"tensor.{name}": tensor.detach() for name, tensor in self.tensors.items()}
        return out, {"step": self.step, **values}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Load the result of `export`."""
        clf_tensors = {n.removeprefix("clf."): t for n, t in tensors.items() if n.startswith("clf.")}
        self.clf.posterior.restore(clf_tensors)
        for name, buffer in self.clf.module.named_buffers():
            buffer.copy_(clf_tensors[f"buffer.{name}"])
        for which, optimizer in self.optimizers.items():
            prefix = f"optimizer.{which}."
            slots: dict[int, dict[str, Tensor]] = {}
            for name, tensor in tensors.items():
                if name.startswith(prefix):
                    index, slot = name.removeprefix(prefix).split(".")
                    slots.setdefault(int(index), {})[slot] = tensor
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": slots, "param_groups": groups})
        for which, module in self.modules.items():
            module.load_state_dict({name: tensors[f"module.{which}.{name}"] for name in module.state_dict()})
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[f"tensor.{name}"])
        self.step = values["step"]


class LoopDefense(Defense):
    """Base class of training on minibatches. Methods implement `begin` and `update`."""

    Params: ClassVar[type[Params]] = LoopParams
    params: LoopParams
    watches = True

    def steps(self, per_epoch: int) -> int:
        """Total number of steps; `per_epoch` steps are one epoch."""
        return per_epoch * sum(self.params.stages)

    @abstractmethod
    def begin(self, module: nn.Module, steps: int, count: int, context: TrainContext) -> TrainState:
        """The state before the first step.

        Args:
            module: a copy of the user's module on the device, with the initial weights.
            steps: total number of steps.
            count: number of training images N.
            context: seed, precision, device.
        """

    @abstractmethod
    def update(self, state: TrainState, x: Tensor, y: Tensor, count: int, context: TrainContext) -> dict[str, Tensor]:
        """Take one step on a minibatch; return scalars to monitor, on the device."""

    def finish(self, state: TrainState) -> Classifier:
        """The classifier after the last step."""
        return state.clf

    def fit(self, module: nn.Module, data: Data, context: TrainContext | None = None) -> Classifier:
        """Train a copy of a module on data; see `advbench.training.Defense.fit`.

        Raises:
            InputError: module and data do not match, or `init_from` does not give initial weights.
            PluginError: a term of the loss is not finite; the message names step and term.
        """
        check_data(module, data)
        method = self.for_dataset(data.name)
        context = context or TrainContext()
        saved = context.checkpoint.load() if context.checkpoint else None
        own = _own(module).to(context.resources.device).requires_grad_(True)
        check_fit(own, data, context.resources.device)
        if method.params.init_from and saved is None:
            _start_from(own, context.init or method._train_init(module, data, context))
        per_epoch = -(-len(data) // method.params.batch_size)
        with isolated_rng(derive(context.seed, "begin"), context.resources.device, everywhere=True):
            made = method.begin(own, method.steps(per_epoch), len(data), context)
        state: TrainState = checked(
            method, "begin", made, TrainState, "write: return TrainState(Classifier(module), steps, ...)"
        )
        check_effect(type(self).__name__, state.clf, data)
        if saved is not None:
            state.restore(*saved)
        with isolated_rng(0, context.resources.device, everywhere=True):
            method._run(state, data.to(context.resources.device), per_epoch, context)
        state.clf.passes.check_finite()  # a step along a NaN gradient does not show in the loss
        state.clf.module.eval()
        clf = method._finished(state)
        clf.requires_grad_(False)
        _check_finite(clf, data, context)
        check_trained(type(self).__name__, clf, data)
        return clf

    def separable(self, clf: Classifier) -> bool:
        """True if a step can process its images in chunks that differ by rounding only."""
        return False

    @contextmanager
    def _enough_memory(self, state: TrainState, x: Tensor) -> Iterator[None]:
        """Raise if a step does not fit in memory and cannot be split into chunks."""
        try:
            yield
        except Exception as error:
            if not out_of_memory(error) or self.separable(state.clf):
                raise
            raise OutOfMemoryError(
                f"memory of {x.device} ran out in training step {state.step + 1}, on {len(x)} images of shape "
                f"{tuple(x.shape[1:])} ({str(error).partition(chr(10))[0]})",
                remedy="lower batch_size, or use a smaller net or a device with more memory",
            ) from error

    def _train_init(self, module: nn.Module, data: Data, context: TrainContext) -> Classifier:
        name = str(self.params.init_from).partition("@")[0]
        base: Defense = registry().load("defense", name)()
        return base.fit(module, data, dataclasses.replace(context, checkpoint=None, init=None, watch=None))

    def _run(self, state: TrainState, data: Data, per_epoch: int, context: TrainContext) -> None:
        stages = self.params.stages
        boundaries = [per_epoch * sum(stages[: i + 1]) for i in range(len(stages) - 1)]
        sync_every = 1 if data.images.device.type == "cpu" else 50
        watch = _Watch(state.step, state.steps, context, sync_every)
        next_save = time.monotonic() + context.checkpoint_seconds
        for index in _batches(state.step, state.steps, per_epoch, data, context.seed):
            state.enter(0.1 ** sum(state.step >= boundary for boundary in boundaries))
            x, y = data.batch(index)
            if self.params.augment:
                padding = 0 if self.params.augment == "flip" else 4
                x = crop_and_flip(x, context.generator("augment", state.step), padding)
            state.clf.reseed(derive(context.seed, "weights", state.step))
            seed = derive(context.seed, "module", state.step)
            seed_others(seed)
            with isolated_rng(seed, x.device), self._enough_memory(state, x):
                watch.add(checked_scalars(self, "update", self.update(state, x, y, len(data), context)))
            state.step += 1
            if context.watch and (state.step == state.steps or state.step % (context.watch_every or per_epoch) == 0):
                self._show(state, context)
            if context.checkpoint and time.monotonic() >= next_save:
                watch.flush()
                next_save = _save(state, context.checkpoint, context.checkpoint_seconds)
        watch.flush()

    def _finished(self, state: TrainState) -> Classifier:
        clf: Classifier = checked(self, "finish", self.finish(state), Classifier, "write: return state.clf")
        return clf

    def _show(self, state: TrainState, context: TrainContext) -> None:
        """Call `context.watch` without a trace in the training."""
        assert context.watch is not None, "the caller asked"
        clf = self._finished(state)
        modes = [(part, part.training) for part in clf.module.modules()]
        passes, clf.passes = clf.passes, Passes()
        clf.module.eval()
        with isolated_rng(0, context.resources.device, everywhere=True):
            context.watch(state.step, clf)
        clf.passes = passes
        for part, training in modes:
            part.training = training


def _own(module: nn.Module) -> nn.Module:
    """A copy of the module to train.

    Raises:
        InputError: weights are not float32, are not initialised, or cannot be copied.
    """
    for name, parameter in module.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            expected, remedy = "an initialised parameter", "pass an image once"
            raise InputError(f"parameter {name}", expected=expected, got="a lazy one", remedy=remedy)
        if parameter.dtype != torch.float32:
            remedy = "train float32 weights; precision 'bfloat16' applies to passes only"
            raise InputError(f"parameter {name}", expected="torch.float32", got=parameter.dtype, remedy=remedy)
    try:
        return copy.deepcopy(module)
    except (RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError("module to train", expected="one that copy.deepcopy can copy", got=reason) from error


@torch.no_grad()
def _check_finite(clf: Classifier, data: Data, context: TrainContext) -> None:
    """Raise if the weights or logits after the last step, which no loss has seen, are not finite."""
    x = data.batch(slice(2))[0].to(context.resources.device)
    with isolated_rng(0, x.device, everywhere=True), clf.isolated():
        logits = clf.draws(x, 3)
    for name, tensor in {**export_classifier(clf)[0], "the logits": logits}.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise PluginError(
                f"{name} after the last step", expected="finite", got="NaN or infinity", remedy="lower lr"
            )


def check_data(module: nn.Module, data: Data) -> None:
    """Raise if a module cannot be trained, or data are invalid.

    Raises:
        InputError: names the defect.
    """
    if not isinstance(module, nn.Module) or isinstance(module, Classifier):
        raise InputError("module to train", expected="an nn.Module other than a Classifier", got=type(module).__name__)
    if not isinstance(data, Data):
        raise InputError("training data", expected="an advbench.Data", got=type(data).__name__)
    check_images(data.images, "training images")
    check_labels(data.labels, len(data.images), data.classes, "training labels")
    if len(data) == 0:
        raise InputError("training data", expected="at least one image", got=0)


@torch.no_grad()
def check_fit(module: nn.Module, data: Data, device: str, *, random: bool = False) -> None:
    """Raise before the first step if a module does not give a logit for each class, or is random by itself."""
    modes = [part.training for part in module.modules()]
    module.eval()
    x = data.batch(slice(1))[0].to(device)
    with isolated_rng(0, x.device, everywhere=True):
        first = Classifier(module)(x)
    with isolated_rng(1, x.device, everywhere=True):
        differs = not torch.allclose(first, Classifier(module)(x), rtol=1e-3, atol=1e-4, equal_nan=True)
    outputs = first.shape[1]
    for part, mode in zip(module.modules(), modes, strict=True):
        part.training = mode
    if outputs != data.classes:
        raise InputError("the module's output", expected=f"{data.classes} logits, one per class", got=outputs)
    if differs and not random:
        raise InputError(
            "net to train",
            expected="a net that is deterministic in evaluation mode",
            got="one that draws random numbers itself",
            remedy="only pretrained (with random=true) and defenses with a fit of their own can use it: give it to "
            "these alone, as in --set pretrained.arch=net.py:build",
        )


def _start_from(module: nn.Module, trained: Classifier) -> None:
    """Copy the weights of a trained net into a module of the same architecture.

    Raises:
        InputError: the net is random, or of another architecture.
    """
    if trained.stochastic or not isinstance(trained.posterior, PointPosterior):
        raise InputError("init_from", expected="a deterministic defense, such as 'erm'", got="a random one")
    weights = trained.posterior.export()
    try:
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                copy_alike(parameter, weights.pop(f"value.{name}"), name)
            for (name, mine), (_, theirs) in zip(module.named_buffers(), trained.module.named_buffers(), strict=True):
                copy_alike(mine, theirs, name)
            if weights:
                raise KeyError(min(weights))
    except (KeyError, RuntimeError, ValueError) as error:
        raise InputError(f"init_from: weights of another architecture: {error}") from error


def crop_and_flip(x: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Zero-pad each image, crop it at random to its size, and flip it left-right with probability 1/2."""
    batch, _, height, width = x.shape
    padded = F.pad(x, (padding, padding, padding, padding))
    corners = torch.randint(0, 2 * padding + 1, (2, batch, 1), generator=generator, device=x.device)
    flip = torch.rand((batch, 1), generator=generator, device=x.device) < 0.5
    rows = corners[0] + torch.arange(height, device=x.device)
    columns = torch.arange(width, device=x.device).expand(batch, width)
    columns = corners[1] + torch.where(flip, width - 1 - columns, columns)
    image = torch.arange(batch, device=x.device)[:, None, None]
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def autocast(context: TrainContext) -> torch.autocast:
    """Context of passes in the training's precision; weights and losses stay float32."""
    device = torch.device(context.resources.device).type
    return torch.autocast(device, torch.bfloat16, enabled=context.precision == "bfloat16")


def _save(state: TrainState, slot: CheckpointSlot, seconds: float) -> float:
    """Save the state; return the time of the next save.

    A large state is saved less often, down to a tenth of the frequency, so that saving takes about 5 % of the time.
    """
    started = time.monotonic()
    slot.save(*state.export())
    ended = time.monotonic()
    return ended + min(max(seconds, 20 * (ended - started)), 10 * seconds)


def _batches(first: int, total: int, per_epoch: int, data: Data, seed: int) -> Iterator[Tensor]:
    """Index tensors of steps `first` to `total`: each epoch is a permutation split into nearly equal parts.

    Permutations are drawn on the CPU, so that they are the same for every device, and moved once per epoch.
    """
    parts: tuple[Tensor, ...] = ()
    for step in range(first, total):
        epoch, position = divmod(step, per_epoch)
        if not parts or position == 0:
            generator = torch.Generator().manual_seed(derive(seed, "order", epoch))
            order = torch.randperm(len(data), generator=generator).to(data.images.device)
            parts = order.tensor_split(per_epoch)
        yield parts[position]


class _Watch:
    """Collects the scalars of each step on the device; checks and reports them occasionally, to synchronise rarely."""

    def __init__(self, step: int, total: int, context: TrainContext, sync_every: int) -> None:
        self._step = step
        self._total = total
        self._context = context
        self._sync_every = sync_every
        self._pending: list[dict[str, Tensor]] = []

    def add(self, values: dict[str, Tensor]) -> None:
        if self._pending and self._pending[0].keys() != values.keys():
            self.flush()
        self._pending.append(values)
        if len(self._pending) >= self._sync_every:
            self.flush()

    def flush(self) -> None:
        if not self._pending:
            return
        names = list(self._pending[0])  # none, if a method has nothing to show
        rows = [
            torch.stack([row[name].float() for name in names]) if names else torch.empty(0) for row in self._pending
        ]
        table = torch.stack(rows).cpu()
        bad = (~table.isfinite()).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            raise PluginError(
                f"training step {self._step + row + 1} of {self._total}",
                expected=f"a finite {names[column]}",
                got=float(table[row, column]),
                remedy="lower the learning rate, or kl_weight if the term is the KL",
            )
        self._step += len(self._pending)
        self._pending.clear()
        self._context.progress(Progress(self._step, self._total, dict(zip(names, table[-1].tolist(), strict=True))))
