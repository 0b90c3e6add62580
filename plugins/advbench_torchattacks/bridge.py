"""Wraps attacks of torchattacks as attacks of advbench."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import io
import re
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import pydantic
import torch
from torch import Tensor, nn

from advbench import attacks
from advbench.attacks import Attack, Field, Goal, Norm, Threat, per_image, snapped, snapped_to_box
from advbench.errors import InputError, unknown_name
from advbench.models import Classifier
from advbench.registry import calling, require

require("torchattacks", "the family 'torchattacks:'", "bridges")
torchattacks = importlib.import_module("torchattacks")

WRAPPERS = {"MultiAttack": "'worst_case' combines attacks", "LGV": "'transfer' attacks another defense's classifier"}
NO_GRADIENTS = frozenset({"VANILA", "GN", "SPSA", "Square", "OnePixel", "Pixle"})
RADII = ("eps", "max_epsilon")  # the library's names of eps
SUPPLIED = frozenset({"self", "model", "norm", "seed", "n_classes", "verbose", *RADII})
NORM_NAMES: Mapping[Norm, str] = {"linf": "Linf", "l2": "L2"}
REAL = frozenset({"c", "kappa", "scale", "lam", "nsig"})  # real-valued parameters with an integer default
CHOICES = {
    "kernel_name": ("gaussian", "linear", "uniform"),
    "noise_type": ("guassian", "uniform"),  # the library's spelling
    "pixel_mapping": ("random", "similarity", "similarity_random", "distance", "distance_random"),
    "version": ("standard", "plus", "rand"),
}
BOUNDS = {
    "resize_rate": {"gt": 0, "lt": 1},
    "diversity_prob": {"ge": 0, "le": 1},
    "prob": {"ge": 0, "le": 1},
    "rho": {"gt": 0, "lt": 1},
}
LOSSES = {"UPGD": ("ce", "margin", "dlr"), "APGD": ("ce", "dlr"), "Square": ("margin", "ce")}
COLOUR = frozenset({"TIFGSM", "PIFGSM", "PIFGSMPP"})  # their kernels have three channels
LEAST_CLASSES = {"APGDT": 4, "AutoAttack": 4}  # the targeted DLR loss uses the four largest logits


class TorchattacksAttack(Attack):
    """Its hyperparameters are those of the library except model, eps, norm, seed and number of classes."""

    built_on = ("torchattacks",)
    library: ClassVar[type[Any]]
    radius: ClassVar[str | None]
    alpha_share: ClassVar[float | None]

    def run(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        """Run the library's attack; its prints and warnings are suppressed."""
        name, y, targets = self.library.__name__, goal.labels, goal.targets
        if name in COLOUR and x.shape[1] != 3:
            raise InputError(f"images given to torchattacks:{name}", expected="3 channels", got=x.shape[1])
        with torch.no_grad():
            classes = clf(x[:1]).shape[1]
        if name == "JSMA" and targets is None:  # targeted only, and assumes ten classes
            targets = (y + 1) % classes
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Kernels that may differ next time are noted by the task; see `advbench.grid.devices.unsteady_kernels`.
            warnings.filterwarnings("always", message=r".*does not have a deterministic implementation")
            attack = self.library(clf, **self._settings(classes, threat, generator))
            attack.set_device(x.device)
            if targets is not None:
                attack.set_mode_targeted_by_label(quiet=True)
            with calling(f"torchattacks:{name}"):
                found: Tensor = attack(x, y if targets is None else targets).detach()
        # Some attacks divide by the mean of a gradient, which may be zero; NaN images count as failures.
        found = torch.where(per_image(found.flatten(1).isfinite().all(1), x), found, x)
        return snapped_to_box(found) if self.minimal_norm else snapped(found, x, threat)

    def _settings(self, classes: int, threat: Threat, generator: torch.Generator) -> dict[str, Any]:
        settings: dict[str, Any] = self.params.model_dump()
        if self.alpha_share is not None and settings["alpha"] is None:
            settings["alpha"] = self.alpha_share * threat.eps
        known = inspect.signature(self.library).parameters
        if self.radius:
            settings[self.radius] = threat.eps
        least = 3 if settings.get("loss") == "dlr" else LEAST_CLASSES.get(self.library.__name__, 2)
        if classes < least:
            raise InputError(
                f"classes of the model under attack torchattacks:{self.library.__name__}",
                expected=f"at least {least} for its loss",
                got=classes,
                remedy="use 'apgd', which has no such limit",
            )
        given = {
            "norm": NORM_NAMES[threat.norm],
            "seed": generator.initial_seed() % 2**31,
            "n_classes": classes,
            "verbose": False,
        }
        return settings | {name: value for name, value in given.items() if name in known}


@functools.cache
def attack(name: str) -> type[TorchattacksAttack]:
    """Class of the attack with a given name.

    Raises:
        InputError: torchattacks has no such attack, or it wraps others.
    """
    if name in WRAPPERS:
        raise InputError(f"torchattacks:{name}", expected="an attack with no other inputs", remedy=WRAPPERS[name])
    names = [known for known in torchattacks.__all__ if known not in WRAPPERS]
    if name not in names:
        raise unknown_name("attack of torchattacks", name, names)
    library = getattr(torchattacks, name)
    parameters = inspect.signature(library).parameters
    radius = next((known for known in RADII if known in parameters), None)
    alpha = parameters.get("alpha")
    share = alpha.default / parameters[radius].default if alpha and radius else None
    probe = library(nn.Linear(1, 1))
    facts = {
        "__doc__": f"{name} of torchattacks. {TorchattacksAttack.__doc__}",
        "Params": _params(name, parameters, share),
        "library": library,
        "version": "1",
        "radius": radius,
        "alpha_share": share,
        "norms": _norms(library, parameters),
        "minimal_norm": radius is None,
        "targeted": "targeted" in probe.supported_mode,
        "gradients": name not in NO_GRADIENTS,
    }
    return type(f"torchattacks:{name}", (TorchattacksAttack,), facts)


def _norms(library: type[Any], parameters: Mapping[str, inspect.Parameter]) -> frozenset[Norm]:
    """Norms according to the library; both for attacks without a ball, whose examples are projected."""
    measure = re.search(r"Distance Measure\s*:\s*(.*)", library.__doc__ or "")
    said: list[Norm] = [norm for norm, name in NORM_NAMES.items() if measure and name in measure[1]]
    return frozenset(said if said and "norm" not in parameters else NORM_NAMES)


def _params(name: str, parameters: Mapping[str, inspect.Parameter], alpha_share: float | None) -> type[attacks.Params]:
    fields: dict[str, Any] = {}
    for key, parameter in parameters.items():
        if key in SUPPLIED:
            continue
        kind = _kind(name, key, parameter.default)
        described = f"as in torchattacks.{name}"
        if key == "alpha" and alpha_share is not None:
            described = f"step size in pixels; None for {alpha_share:.4g} eps, the library's ratio"
            fields[key] = (kind | None, Field(default=None, gt=0, description=described))
            continue
        least = {int: 1, float: 0, int | float: 0}.get(kind)
        if name in ("EADL1", "EADEN") and key == "max_iterations":
            least = 10  # the library checks every tenth step
        bounds: dict[str, Any] = BOUNDS.get(key, {"ge": least})
        fields[key] = (kind, Field(default=parameter.default, description=described, **bounds))
    return pydantic.create_model("Params", __base__=attacks.Params, **fields)


def _kind(name: str, key: str, default: object) -> Any:
    """Type of a parameter, inferred from the default in the library's signature."""
    choices = LOSSES.get(name) if key == "loss" else CHOICES.get(key)
    if choices:
        return Literal[choices]
    if isinstance(default, tuple):
        return tuple[int | float, int | float]
    if key in REAL:
        return int | float
    return type(default)
