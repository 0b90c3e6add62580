"""Access to a finished run or a board in Python: tables, classifiers, predictions per image, and figures."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from advbench.errors import GoneError, InputError, unknown_name
from advbench.evaluation import Bools, Floats, Predictions
from advbench.evaluation.uncertainty import score, uncertainty
from advbench.grid.identity import read_identity
from advbench.grid.inputs import read_crafting, read_training
from advbench.grid.kept import placed, read_kept
from advbench.grid.run import prepare_anew
from advbench.grid.spec import make_spec, parse_toml
from advbench.grid.tasks import read_predictions
from advbench.keys import derive
from advbench.models.classifier import Classifier
from advbench.models.nets import build
from advbench.models.saving import load_classifier, read_tensors
from advbench.registry import files, registry
from advbench.report.tables import Report, read_report
from advbench.store.records import Store
from advbench.store.storage import BRIEF

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DEFAULT_STORE = ".advbench/store"


@dataclass(frozen=True)
class Run:
    """A finished run: its `--out` folder and its store.

    Tables are read from the folder only. Classifiers, predictions and examples are in the store.

    Attributes:
        folder: `--out` folder of a run, or folder of a board.
        store: store of the run, a folder or fsspec URL.
        run_files: import files stored in the folder if a classifier needs them; only for trusted folders.
    """

    folder: Path
    store: str
    run_files: bool = False

    @cached_property
    def report(self) -> Report:
        """All tables."""
        return read_report(self.folder)

    @property
    def results(self) -> pd.DataFrame:
        """One row per source, target, attack, eps and seed: `results.csv`."""
        return self.report.results

    @property
    def leaderboard(self) -> pd.DataFrame:
        """One row per defense, the most robust first: `leaderboard.csv`."""
        return self.report.leaderboard

    @property
    def affinity(self) -> pd.DataFrame:
        """Affinity of sources to targets: `affinity.csv`."""
        return self.report.affinity

    @property
    def retention(self) -> pd.DataFrame:
        """Accuracy on the images of lowest uncertainty: `retention.csv`."""
        return self.report.retention

    @property
    def uncertainty(self) -> pd.DataFrame:
        """Calibration, uncertainty and detection: `uncertainty.csv`."""
        return self.report.uncertainty

    @property
    def methods(self) -> pd.DataFrame:
        """Hyperparameters and versions of each defense and attack: `methods.csv`."""
        return self.report.methods

    @property
    def models(self) -> pd.DataFrame:
        """The trained classifiers: `models.csv`."""
        return self.report.models

    @property
    def differences(self) -> pd.DataFrame:
        """Differences of the areas of each two defenses, and of their lowest accuracies per eps: `differences.csv`."""
        return self.report.differences

    @property
    def attacks(self) -> pd.DataFrame:
        """Excess of each attack's accuracies over the lowest ones: `attacks.csv`."""
        return self.report.strengths

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}: {len(self.results)} cells of {len(self.report.standings)} defenses)"

    # From the store

    @cached_property
    def _store(self) -> Store:
        return Store(self.store, BRIEF)

    def classifier(self, defense: str, seed: int = 0, device: str = "cpu") -> Classifier:
        """A trained classifier.

        Args:
            defense: label of the defense.
            seed: seed of its training.
            device: device of the classifier.

        Raises:
            InputError: it does not exist, or it needs a stored file and `run_files` is not set.
        """
        models = self.models
        rows = models[(models.defense == defense) & (models.seed == seed)]
        if rows.empty:
            raise _absent("defense", defense, models.defense, seed, models.seed)
        key = str(rows.iloc[0].key)
        inputs = read_training(self._record(key))
        identity = read_identity(self.folder)
        if identity is None:
            raise InputError(f"folder {self.folder}", expected="a data.json", got="none")
        net = inputs.architecture
        with self._files(f"classifier of {defense!r}"):
            module = build(net.loaded_as, identity.blank(), derive(seed, "init"), net.params)
            tensors, values = read_tensors(self._artifact(key)), self._record(key)["result"]["classifier"]
            return load_classifier(module, tensors, values).to(device)  # buffers contain mean and standard deviation

    def predictions(
        self, defense: str, attack: str = "none", eps: float | None = None, seed: int = 0, source: str | None = None
    ) -> Predictions:
        """Predictions of a classifier's draws on each image.

        Args:
            defense: label of the evaluated defense.
            attack: label of the attack; `none` for clean images, `ood:NAME` for out-of-distribution ones.
            eps: radius; by default the largest.
            seed: seed of training, attack and evaluation.
            source: label of the defense that examples were crafted on; by default the attack's source, or `defense`.

        Raises:
            InputError: the cell does not exist, or is not in the store.
        """
        kind, _, name = attack.partition(":")
        key = self._ood_cell(defense, name, seed) if kind == "ood" else self._cell(defense, attack, eps, seed, source)
        try:
            return read_predictions(self._store, key)
        except GoneError as error:
            raise self._not_there("predictions") from error

    def detection_scores(
        self,
        defense: str,
        attack: str,
        measure: str = "total",
        *,
        fooled: str | Bools | None = None,
        seed: int = 0,
        **cell: Any,
    ) -> tuple[Floats, Floats]:
        """Uncertainty of the clean images and of others, for `detection` and `auroc_interval` (APD Tables 2 and 3).

        Args:
            defense: label of the defense whose uncertainty detects the others.
            attack: label of the attack, or `ood:NAME`.
            measure: measure as in `advbench.evaluation.score`; APD: least_confidence, epistemic (BALD) or
                model_variance.
            fooled: restriction to attacked images that fooled a classifier which is right on the clean ones: the label
                of its defense (APD: the source), or a boolean mask. Of an attack on one draw, as `gray_box`, those that
                this draw has wrong, also without the attack (as foolbox 1 counts), if the store kept the examples.
            seed: seed of training, attack and evaluation.
            cell: `eps` and `source`, as in `predictions`.

        Returns:
            Scores of all clean images, and of the others.

        Raises:
            InputError: the cell or measure does not exist, or no image fooled the classifier.
        """
        clean = score(self.predictions(defense, seed=seed), measure)
        found = score(self.predictions(defense, attack, seed=seed, **cell), measure)
        if isinstance(fooled, str):
            fooled = self._fooled(fooled, attack, seed, {"source": defense} | cell)
        if fooled is not None:
            found = found[fooled]
        if len(found) == 0:
            raise InputError("examples to detect", expected="at least one that fooled the classifier", got="none")
        return clean, found

    def images(self, defense: str, attack: str = "none", **cell: Any) -> pd.DataFrame:
        """One row per image: label, prediction, confidence, correctness, and uncertainty in nats.

        Args:
            defense: as in `predictions`.
            attack: as in `predictions`.
            cell: `eps`, `seed` and `source`, as in `predictions`.

        Returns:
            Columns `label`, `predicted`, `correct`, `confidence`, `draws_correct` (the fraction of correct draws), and
            those of `advbench.evaluation.Uncertainty`. Rows are in the order of the run's images.
        """
        found = self.predictions(defense, attack, **cell)
        return pd.DataFrame(
            {
                "label": found.labels,
                "predicted": found.mean_probs.argmax(1),
                "correct": found.ensemble_correct,
                "confidence": found.mean_probs.max(1),
                "draws_correct": found.correct.mean(0),
                **uncertainty(found)._asdict(),
            }
        )

    def examples(
        self, defense: str, attack: str, eps: float | None = None, seed: int = 0, source: str | None = None
    ) -> Tensor:
        """The adversarial examples of a cell, `(images, channels, height, width)` in [0, 1]; see `predictions`.

        For a minimal-norm attack, the nearest examples at any distance.

        Raises:
            InputError: the cell does not exist, or examples were not kept.
        """
        key = self._record(self._cell(defense, attack, eps, seed, source))["inputs"]["examples"]
        if key is None:
            raise InputError("clean images", expected="an attack with stored examples", got=repr(attack))
        raw = self._store.read_artifact(key)
        if raw is None:
            raise InputError("examples were not kept", remedy="run with --keep-examples, or keep_examples=True")
        return read_tensors(raw)["images"]

    def figures(self) -> Mapping[str, Axes | list[Axes]]:
        """All figures that the tables allow, by name, as matplotlib axes, or lists of axes."""
        from advbench.report.figures import all_figures

        found: dict[str, Axes | list[Axes]] = {}
        for name, figure in all_figures(self.report):
            axes = [each for each in figure.axes if each.get_visible()]
            found[name] = axes[0] if len(axes) == 1 else axes
        return found

    @contextmanager
    def _files(self, what: str) -> Iterator[None]:
        """Let a block import the stored files, if `run_files` is set."""
        if self.run_files:
            for sources in placed(read_kept(self.folder)[1], self.folder):
                if sources not in files.all_known():
                    files.know(sources)
        try:
            yield
        except InputError as error:
            if "file with SHA-256" in str(error):
                remedy = "open_run(folder, run_files=True) imports the stored files: read them first"
                raise InputError(f"{what} needs a file", remedy=remedy) from error
            raise

    def _fooled(self, defense: str, attack: str, seed: int, cell: dict[str, Any]) -> Bools:
        after = self.predictions(defense, attack, seed=seed, **cell)
        own = self._record(self._cell(defense, attack, cell.get("eps"), seed, cell["source"]))
        made_by = read_crafting(self._record(own["inputs"]["examples"])).attack
        with self._files(f"attack {attack!r}"):
            method = registry().load("attack", made_by.loaded_as)(**made_by.params or {})
        if method.knows != "a_draw":
            return self.predictions(defense, seed=seed).ensemble_correct & ~after.ensemble_correct
        draw = method.attacked(self.classifier(defense, seed))
        with torch.no_grad():
            predicted = draw(self.examples(defense, attack, seed=seed, **cell)).argmax(1)
        fooled: Bools = predicted.numpy() != after.labels
        return fooled

    def _cell(self, defense: str, attack: str, eps: float | None, seed: int, source: str | None) -> str:
        rows = self.results
        for name, value in (("defense", defense), ("attack", attack), ("seed", seed)):
            found = rows[rows[name] == value]
            if found.empty:
                raise _absent(name, value, rows[name])
            rows = found
        radius = rows.eps.max() if eps is None else eps
        found = rows[(rows.eps - radius).abs() < 1e-9]
        if found.empty:
            raise _absent("eps", radius, rows.eps)
        sources = list(found.source)
        chosen = source or (defense if defense in sources or len(sources) > 1 else sources[0])
        if chosen not in sources:
            raise _absent("source", chosen, found.source)
        return str(found[found.source == chosen].iloc[0].key)

    @cached_property
    def _ood_cells(self) -> dict[tuple[str, str, int], str]:
        plan = prepare_anew(make_spec(parse_toml(self.folder / "spec.toml")), self.folder)
        return {(each.defense.label, each.name, each.seed): each.key for each in plan.ood if each.attack is None}

    def _ood_cell(self, defense: str, name: str, seed: int) -> str:
        cells = self._ood_cells
        if (defense, name, seed) not in cells:
            known = [f"{label}, ood:{other}, seed {number}" for label, other, number in cells]
            raise unknown_name("cell", f"{defense}, ood:{name}, seed {seed}", known)
        return cells[defense, name, seed]

    def _record(self, key: str) -> dict[str, Any]:
        record = self._store.read_record(key)
        if record is None:
            raise self._not_there("its record")
        return record

    def _artifact(self, key: str) -> bytes:
        raw = self._store.read_artifact(key)
        if raw is None:
            raise self._not_there("its weights")
        return raw

    def _not_there(self, what: str) -> InputError:
        remedy = "set the run's store: open_run(folder, store=URL)"
        return InputError(f"store {self.store!r}", expected=what, got="none", remedy=remedy)


def _absent(what: str, value: object, known: Any, *more: Any) -> InputError:
    names = list(dict.fromkeys(map(str, known)))
    if str(value) not in names:
        return unknown_name(what, str(value), names)
    seed, seeds = more
    return unknown_name("seed", str(seed), dict.fromkeys(map(str, seeds)))


def open_run(folder: str | os.PathLike[str], store: str | None = None, *, run_files: bool = False) -> Run:
    """Open the `--out` folder of a run, or the folder of a board.

    Args:
        folder: path of the folder.
        store: store of the run, for classifiers, predictions and examples; by default ADVBENCH_STORE, or
            .advbench/store.
        run_files: import files stored in the folder if a classifier needs them; only for trusted folders.

    Raises:
        InputError: it does not contain tables of a run.
    """
    run = Run(Path(folder), store or os.environ.get("ADVBENCH_STORE") or DEFAULT_STORE, run_files)
    _ = run.report
    return run
