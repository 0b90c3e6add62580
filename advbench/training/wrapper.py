"""Defenses that add noise to the net of a trained defense, without training of their own."""

from __future__ import annotations

import copy
import dataclasses
from abc import abstractmethod
from typing import ClassVar

from torch import nn

from advbench.data.base import Data
from advbench.errors import InputError
from advbench.models.classifier import Classifier
from advbench.models.noise import Noise, checked_noise
from advbench.models.saving import export_classifier, load_classifier
from advbench.registry import registry
from advbench.registry.params import Field, Params
from advbench.training.base import Defense, TrainContext


class WrapperParams(Params):
    """Hyperparameters shared by all wrappers."""

    init_from: str = Field(
        default="erm",
        min_length=1,
        description="defense to wrap: one of the run, or trained for it with its own settings",
    )


class Wrapper(Defense):
    """Base class of defenses that add noise to the classifier of another one and average over draws (smoothing).

    Only the wrapped defense is trained, once for all of its wrappers. Methods override `noise`.
    """

    Params: ClassVar[type[Params]] = WrapperParams
    params: WrapperParams

    @abstractmethod
    def noise(self) -> Noise:
        """Noise around, or inside, the net."""

    def passes_per_image(self) -> float:
        """Zero: nothing is trained."""
        return 0.0

    def fit(self, module: nn.Module, data: Data, context: TrainContext | None = None) -> Classifier:
        """The classifier of the wrapped defense, with noise; see `advbench.training.Defense.fit`.

        Raises:
            InputError: the wrapped defense already contains noise.
            PluginError: `noise` returned something else.
        """
        context = context or TrainContext()
        noise = checked_noise(self, self.noise())
        inner = context.init
        if inner is None:
            base: Defense = registry().load("defense", self.params.init_from.partition("@")[0])()
            inner = base.fit(module, data, dataclasses.replace(context, init=None, watch=None))
        if inner.noise:
            expected = "a defense without noise of its own"
            raise InputError("init_from", expected=expected, got=f"{self.params.init_from}, which contains noise")
        tensors, values = export_classifier(inner)
        clf = load_classifier(copy.deepcopy(module), tensors, values).to(context.resources.device)
        return Classifier(clf.module, clf.posterior, noise=noise).requires_grad_(False)
