"""AutoAttack from its authors' package."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from advbench import attacks
from advbench.attacks import Attack, Field, Goal, Kept, Norm, Threat, snapped
from advbench.errors import InputError
from advbench.models import Classifier
from advbench.registry import calling, require

# Its names in the repository and on PyPI.
LIBRARY = "autoattack" if importlib.util.find_spec("autoattack") else "pyautoattack"
require(LIBRARY, "attack 'autoattack'", "bridges")

NORM_NAMES: Mapping[Norm, str] = {"linf": "Linf", "l2": "L2"}
TARGETS = 9
LEAST_CLASSES = {"apgd-dlr": 3, "apgd-t": 4}  # minimum number of classes of the losses


class AutoAttack(Attack):
    """AutoAttack from its authors' package: an ensemble of APGD, FAB and Square with fixed settings.

    Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks". The package's attacks run with the settings of the version, each on the images that previous ones did not
    break. Success is determined here: the package uses one noisy draw of a random classifier and reports robust models
    as broken; here each image keeps its best example by the attack's own draws. With fewer than ten classes there are
    fewer targets, and losses that need more classes are skipped.
    """

    class Params(attacks.Params):
        """Hyperparameters of AutoAttack."""

        version: Literal["standard", "plus", "rand"] | None = Field(
            default=None,
            description="version: standard, plus or rand; by default standard on a deterministic classifier "
            "and rand on a "
            "random one, as its authors recommend",
        )

    version = "1"
    built_on = (LIBRARY,)
    params: Params

    def run(self, clf: Classifier, x: Tensor, goal: Goal, threat: Threat, generator: torch.Generator) -> Tensor:
        """Run the attacks of the version in order."""
        with _silence():
            suite = importlib.import_module(LIBRARY).AutoAttack(
                clf,
                norm=NORM_NAMES[threat.norm],
                eps=threat.eps,
                version=self.params.version or ("rand" if clf.stochastic else "standard"),
                seed=generator.initial_seed() % 2**31,
                device=x.device,
            )
            with torch.no_grad():
                classes = clf(x[:1]).shape[1]
            suite.apgd_targeted.n_target_classes = suite.fab.n_target_classes = min(TARGETS, classes - 1)
            usable = [name for name in suite.attacks_to_run if classes >= LEAST_CLASSES.get(name, 2)]
            kept, y = Kept(clf, goal), goal.labels
            kept.offer(x)
            for name in usable:
                rows = kept.remaining()
                if len(rows):
                    with calling(f"{name} of {LIBRARY}"), clf.attacked(y[rows]):
                        found = _attack(suite, name).perturb(x[rows], y[rows])
                    kept.offer(found.detach(), rows)
        return snapped(kept.images, x, threat)


def _attack(suite: Any, name: str) -> Any:
    """One of the suite's attacks, set up as in the suite."""
    kinds = {"apgd-ce": suite.apgd, "apgd-dlr": suite.apgd, "apgd-t": suite.apgd_targeted, "square": suite.square}
    attack = kinds.get(name, suite.fab)
    attack.seed = suite.seed
    if name in ("apgd-ce", "apgd-dlr"):
        attack.loss = name.removeprefix("apgd-")
    elif name in ("fab", "fab-t"):
        attack.targeted = name == "fab-t"
        if attack.targeted:
            attack.n_restarts = 1
    elif name not in kinds:
        raise InputError(f"attack {name!r} of {LIBRARY}", expected="a known attack", remedy="please report this")
    return attack


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Suppress prints and log lines in a block."""
    logger = logging.getLogger("auto-attack")
    before, logger.disabled = logger.disabled, True
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.disabled = before
