"""Models of RobustBench as pretrained defenses."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import io
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from advbench.data import Data
from advbench.errors import InputError, unknown_name
from advbench.models import Classifier
from advbench.registry import require, written_over
from advbench.training import Defense, TrainContext

SHAPES = {"cifar10": (3, 32, 32, 10), "cifar100": (3, 32, 32, 100), "imagenet": (3, 224, 224, 1000)}
LIBRARIES = ("robustbench", "timm")  # libraries with the code of the nets
SPOILT = (RuntimeError, EOFError, AttributeError, KeyError, TypeError, ValueError, UnpicklingError)
ALIASES = {"autoattack": "pyautoattack", "autoattack.state": "pyautoattack.state"}


class ModelId(NamedTuple):
    """Parts of a model's name after `robustbench:`."""

    dataset: str
    threat: str
    model: str

    def __str__(self) -> str:
        return f"robustbench:{'/'.join(self)}"


class RobustBenchModel(Defense):
    """A model of RobustBench (Croce et al. 2021) with its published weights.

    Nothing is trained: the weights are downloaded once, by robustbench's own code, into the folder `robustbench` of
    torch's hub folder (set by `TORCH_HOME`), and read without unpickling. The architecture is part of the model.
    """

    built_on = LIBRARIES
    id: ClassVar[ModelId]

    @property
    def architecture(self) -> str:
        """Architecture of the model."""
        return str(self.id)

    def fit(self, module: nn.Module, data: Data, context: TrainContext | None = None) -> Classifier:
        """Load the model, after downloading missing files; `module` is not used, and `data` only for its shape."""
        del module
        _check_images(self.id, (*data.shape, data.classes))
        context = context or TrainContext()
        return Classifier(_load(self.id).to(context.resources.device)).requires_grad_(False)

    def passes_per_image(self) -> float:
        """Zero: nothing is trained."""
        return 0.0


@functools.cache
def defense(name: str) -> type[RobustBenchModel]:
    """Class of the model with a given name.

    Raises:
        InputError: RobustBench has no such model.
    """
    return type(
        f"robustbench:{name}",
        (RobustBenchModel,),
        {"id": _parsed(name), "version": "1", "__doc__": RobustBenchModel.__doc__},
    )


def architecture(name: str) -> Any:
    """Function that builds the net of a model, like other architectures.

    Raises:
        InputError: RobustBench has no such model.
    """
    model_id = _parsed(name)

    def make(channels: int, height: int, width: int, classes: int) -> nn.Module:
        _check_images(model_id, (channels, height, width, classes))
        with _quiet():
            return _untrained(model_id).eval()

    make.normalizes = True  # type: ignore[attr-defined]
    make.built_on = LIBRARIES  # type: ignore[attr-defined]
    return make


def _untrained(model_id: ModelId) -> nn.Module:
    """Net of a model before its weights are loaded."""
    timm_name = f"{model_id.model.lower().replace('-', '_')}_{model_id.dataset}_{model_id.threat.lower()}"
    timm = importlib.import_module("timm")
    net: nn.Module
    if timm.is_model(timm_name):
        net = timm.create_model(timm_name, num_classes=SHAPES[model_id.dataset][3])
    else:
        net = _zoo()[model_id.dataset][model_id.threat][model_id.model]["model"]()
    return net


def _load(model_id: ModelId) -> nn.Module:
    """Load a model with robustbench's own loader."""
    folder = Path(torch.hub.get_dir()) / "robustbench"
    target = folder / model_id.dataset / model_id.threat / model_id.model
    try:
        with _quiet():
            loaded: nn.Module = _robustbench().load_model(
                model_id.model, model_dir=str(folder), dataset=model_id.dataset, threat_model=model_id.threat
            )
    except SPOILT as error:
        runs_code = "Unsupported global" in str(error)
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:100]}"
        raise InputError(
            f"weights of {model_id} cannot be read",
            expected="tensors only" if runs_code else "the published weights",
            got="a file that would run code when unpickled" if runs_code else reason,
            remedy=f"delete {target}*.pt* and run again, or {_remedy(model_id, target)}",
        ) from error
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] != "gdown":
            raise
        raise InputError(
            f"weights of {model_id} are missing and could not be downloaded ({type(error).__name__})",
            remedy=_remedy(model_id, target),
        ) from error
    return loaded


def _remedy(model_id: ModelId, target: Path) -> str:
    ids = _zoo()[model_id.dataset][model_id.threat].get(model_id.model, {}).get("gdrive_id")
    if ids is None:
        return "its weights are on the hub of timm; run the command with access to it"
    if isinstance(ids, str):
        return f"download https://drive.google.com/uc?id={ids} and save it as {target}.pt"
    files = ", ".join(f"https://drive.google.com/uc?id={i} as {target}.pt_m{n}.pt" for n, i in enumerate(ids))
    return f"download and save {files}"


def _parsed(name: str) -> ModelId:
    parts = name.split("/")
    if len(parts) != 3 or not all(parts):
        raise InputError(
            f"robustbench:{name}",
            expected="robustbench:DATASET/THREAT/MODEL",
            remedy="for example robustbench:cifar10/Linf/Carmon2019Unlabeled",
        )
    dataset, threat, model = parts
    known: dict[str, Any] = _zoo()
    for what, part in (("data set", dataset), ("threat", threat), ("model", model)):
        if part not in known:
            raise unknown_name(f"{what} of robustbench", part, known)
        known = known[part]
    return ModelId(dataset, threat, model)


def _check_images(model_id: ModelId, got: tuple[int, int, int, int]) -> None:
    expected = SHAPES[model_id.dataset]
    if got != expected:
        raise InputError(
            str(model_id),
            expected="{}x{}x{} images of {} classes".format(*expected),
            got="{}x{}x{} and {}".format(*got),
            remedy=f"use --dataset {model_id.dataset} or an imagefolder of it",
        )


@functools.cache
def _zoo() -> dict[str, dict[str, dict[str, Any]]]:
    """All models by data set and threat, with the names of the command line."""
    _robustbench()
    found = importlib.import_module("robustbench.model_zoo").model_dicts
    return {
        dataset.value: {threat.value: dict(models) for threat, models in threats.items()}
        for dataset, threats in found.items()
    }


@functools.cache
def _robustbench() -> Any:
    """Module of robustbench's loaders.

    Raises:
        MissingExtraError: it is not installed.
        InputError: another distribution has overwritten its files.
    """
    distribution = require("robustbench", "the family 'robustbench:'", "bridges")
    spoilt = written_over(distribution)
    if spoilt:
        raise InputError(
            f"robustbench {distribution.version} is damaged: another distribution overwrote {spoilt} "
            "(torchattacks includes an old copy)",
            remedy=f"pip install --force-reinstall --no-deps robustbench=={distribution.version}",
        )
    with _quiet(), _aliased():
        return importlib.import_module("robustbench.utils")


@contextlib.contextmanager
def _aliased() -> Iterator[None]:
    """Alias the module `autoattack` that robustbench imports; its package has another name."""
    added = {}
    if importlib.util.find_spec("autoattack") is None:
        added = {alias: importlib.import_module(name) for alias, name in ALIASES.items()}
    sys.modules.update(added)
    try:
        yield
    finally:
        for alias in added:
            del sys.modules[alias]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress prints, progress bars and the libraries' own warnings."""
    nowhere = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        yield
