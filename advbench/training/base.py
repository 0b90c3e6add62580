"""Training methods, and what a training is given beside its data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from advbench.data.base import Data
from advbench.keys import derive
from advbench.models.classifier import Classifier
from advbench.progress import OnProgress
from advbench.registry.params import Configurable

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True)
class Resources:
    """What a task may use. Of it the kind of device alone, the CPU or the model of a GPU, is in keys.

    Devices of one kind give the same results; another kind draws other random numbers. Chunk changes results by
    rounding alone.

    Attributes:
        device: a torch device, as in `"cpu"` or `"cuda:0"`.
        threads: CPU threads of a task. Fixed, because a sum over threads rounds differently.
        chunk: the most images that pass a net at once; None for the whole logical batch. A training is cut
            only where memory runs out.
    """

    device: str = "cpu"
    threads: int = 1
    chunk: int | None = None


class CheckpointSlot(Protocol):
    """Where a training keeps its state, so that a killed run goes on from there."""

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The tensors and the JSON values last saved, or None."""

    def save(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Replace what was saved."""


@dataclass(frozen=True)
class TrainContext:
    """What a training is given beside its data.

    Attributes:
        seed: every random choice of the training derives from it.
        precision: of the training's passes; weights and their updates are always float32.
        resources: device and threads.
        progress: called with the training's progress.
        checkpoint: where to keep the state, or None.
        checkpoint_seconds: the least time between two saved states.
        init: the trained classifier that the hyperparameter `init_from` names; None to have it trained.
        fresh: makes another untrained net like `module`, its initial weights from a seed; None where nobody can.
        watch: called with the steps done and the classifier as it is then, which it must leave as it is; see `history`.
        watch_every: after how many steps; None for those of an epoch. It is always called after the last.
    """

    seed: int = 0
    precision: Precision = "float32"
    resources: Resources = field(default_factory=Resources)
    progress: OnProgress = lambda _: None
    checkpoint: CheckpointSlot | None = None
    checkpoint_seconds: float = 30.0
    init: Classifier | None = None
    fresh: Callable[[int], nn.Module] | None = None
    watch: Callable[[int, Classifier], None] | None = None
    watch_every: int | None = None

    def generator(self, *labels: object) -> torch.Generator:
        """A generator on the training's device, seeded by the labels alone: no state to save."""
        device = self.resources.device
        return torch.Generator(device).manual_seed(derive(self.seed, "train", *labels))


class Defense(Configurable, ABC):
    """A training method: a module and data in, a classifier out."""

    @property
    def architecture(self) -> str | None:
        """The registered architecture that it brings with it; None for whichever the run names."""
        return None

    @property
    def parts(self) -> Mapping[str, Defense]:
        """The methods that it runs, by name; results depend on their versions, too."""
        return {}

    def passes_per_image(self) -> float | None:
        """An upper estimate of the forward-and-backward passes made for each image, over all epochs and steps.

        For planning and progress alone. None where the author gives none.
        """
        return None

    @abstractmethod
    def fit(self, module: nn.Module, data: Data, context: TrainContext | None = None) -> Classifier:
        """Train.

        Must give the same classifier for the same seed, also when it was interrupted and goes on from
        `context.checkpoint`; must leave `module` as it was.

        Args:
            module: any module of torch.nn layers: images in [0, 1] in, logits `(batch, classes)` out. Its
                weights are the starting point; all of them are trained, also those that need no gradient now.
            data: the training images.
            context: seed, device, precision, progress, checkpoints; by default seed 0 on the CPU.

        Returns:
            The classifier, on the context's device.
        """

    def statistics(self, clf: Classifier) -> Mapping[str, Any]:
        """What a trained classifier's record keeps beside it, as JSON values; nothing by default.

        Args:
            clf: what `fit` returned.
        """
        return {}
