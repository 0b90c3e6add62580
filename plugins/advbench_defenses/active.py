"""Active learning: training on images selected by the method's own classifiers."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import nn

from advbench.models import Classifier
from advbench.training import Data, Field, Paper, TrainContext, acquisitions, check_data
from advbench_defenses._inner import InnerDefense, InnerParams, Reset


class Active(InnerDefense):
    """Pool-based active learning: only images that a classifier has selected are labelled.

    Gal et al. 2017, "Deep Bayesian Active Learning with Image Data", and APD section 5.3 (Figure 4). `method` is
    trained on `per_class` images of each class, its classifier selects `batch` more images by `acquisition`, the method
    is trained again from scratch on all of them, and so on for `rounds` trainings. The result is the classifier of the
    last round; the curve over rounds is the run's `history`, whose steps are numbers of labelled images.

    Departure: APD's released code continues the training of the GAN of `apd` between rounds; here each round starts
        from scratch. It takes 3,000 steps per round on all labelled images: `params` of stages [3000] and a batch_size
        of at least their number.
    """

    version = "2"
    watches = True
    paper = Paper(
        title="Deep Bayesian Active Learning with Image Data",
        authors="Gal, Islam, Ghahramani",
        year=2017,
        link="https://arxiv.org/abs/1703.02910",
    )

    class Params(InnerParams):
        """Hyperparameters of active learning."""

        method: str = Field(default="mc_dropout", description="name of the training method; APD: mc_dropout, sgld, apd")
        acquisition: Literal["random", "entropy", "bald", "variation_ratio", "model_variance", "least_confidence"] = (
            Field(default="entropy", description="acquisition function; APD: entropy, random")
        )
        rounds: int = Field(default=10, ge=1, description="number of trainings; APD's released code: 50")
        batch: int = Field(default=10, ge=1, description="number of images added per round; APD section 5.3: 10")
        per_class: int = Field(default=2, ge=1, description="number of initial images per class; APD section 5.3: 2")
        draws: int = Field(default=50, ge=1, description="number of draws for the selection; APD's released code: 50")

    presets = {"paper": {"rounds": 50, "batch": 10, "per_class": 2, "draws": 50}}
    sources = {"section 5.3 of APD, as Gal et al. 2017": "batch per_class", "APD's released code": "rounds draws"}
    accepted = "a method that trains on the given images", ""
    params: Params

    def passes_per_image(self) -> float | None:
        """None: unlabelled images are only predicted, so passes per training image are not meaningful."""
        return None

    def fit(self, module: nn.Module, data: Data, context: TrainContext | None = None) -> Classifier:
        """Train, select, and train again; see `advbench.training.Defense.fit`.

        Nets start from `context.fresh`, or from the module with each layer reset; the weights of `module` are not used.

        Raises:
            InputError: as in `Defense.fit`, or a layer cannot be reset, or there are too few images.
        """
        check_data(module, data)
        method, params, context = self.for_dataset(data.name), self.params, context or TrainContext()
        slot = context.checkpoint
        saved = slot.load() if slot else None
        found = None
        for labelled, found in acquisitions(
            method.inner,
            context.fresh or Reset(copy.deepcopy(module).cpu()),
            data,
            params.acquisition,
            rounds=params.rounds,
            batch=params.batch,
            per_class=params.per_class,
            draws=params.draws,
            context=context,
            labelled=tuple(saved[0]["labelled"].tolist()) if saved else (),
        ):
            if context.watch:
                context.watch(len(labelled), found)
            if slot and len(labelled) < params.per_class * data.classes + (params.rounds - 1) * params.batch:
                slot.save({"labelled": torch.tensor(labelled)}, {})
        assert found is not None, "the last round is not saved"
        return found
