"""Adds a submission to a board: all of it or nothing."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from advbench.boards import staging
from advbench.boards.board import ABOUT, RUN_FILES, SPEC, Board, load_board, pages
from advbench.boards.certainty import classes_of
from advbench.boards.check import Checked, check, check_content
from advbench.boards.compare import Place, Row, same
from advbench.boards.derived import NOT_AT_HAND
from advbench.boards.findings import Findings, row_name
from advbench.boards.parcel import Parcel, opened
from advbench.boards.plans import lay_out, versions_of
from advbench.boards.rows import derived_flags, place
from advbench.boards.vetting import check_records, check_settings
from advbench.grid.identity import DATA, identity_text
from advbench.grid.plan import Plan
from advbench.grid.spec import RunSpec, make_spec
from advbench.report import Report, collect
from advbench.report.ranks import with_own_source
from advbench.report.tables import MODEL_COLUMNS, RESULT_COLUMNS, planned, records, to_csv
from advbench.report.transfers import COLUMNS as AFFINITY_COLUMNS
from advbench.report.transfers import affinity_table
from advbench.store.storage import write_file

PAIR = ("attack", "eps", "seed", "source", "target")
MEASURED = ("affinity", "clean_accuracy", "transfer_accuracy", "white_box_accuracy")
SHOWN = ("key", "accuracy", "accuracy_low", "accuracy_high")  # by which two results of a cell are the same


@dataclass(frozen=True)
class Merged:
    """What a merge did.

    Attributes:
        label: the defense that was added.
        rows: how many rows of results came with it.
        missing: how many rows with other defenses nobody has computed yet.
        finished: whether this only ended a merge of the same file that had been cut off.
    """

    label: str
    rows: int
    missing: int
    finished: bool = False


def merge(folder: Path, path: Path, *, replacing: bool = False, data_root: str | None = None) -> Merged | Findings:
    """Add a submission to a board.

    Everything in the file is checked first: that it holds what `submit` writes and no more, that it was computed under
    the board's settings, data and versions, that its records say what its predictions show, and that the board with it
    passes `check`. Files change together; after a kill the same call ends what was begun or begins anew.

    Args:
        folder: of the board.
        path: the submission.
        replacing: take the place of a defense of the same label.
        data_root: folder of the data sets.

    Returns:
        What was done; or, where the submission is refused and nothing was written, why.

    Raises:
        InputError: the board or the file cannot be read.
        StoreError: the folder cannot be written.
    """
    cause = staging.finish(folder)
    with opened(path) as parcel:
        if cause == parcel.digest:
            return _told(load_board(folder), parcel.label, finished=True)
        checked = check(folder, data_root)
        board, findings = checked.board, Findings()
        for line in checked.findings.lines():
            findings.add("the board itself is not sound", line)
        if parcel.label in board.spec.defenses and not replacing:
            findings.add("the board has a defense of that label already", parcel.label)
        check_settings(board, parcel, checked.identity, findings)
        if findings:
            return findings
        theirs = lay_out(parcel.spec, parcel.identity, versions_of(checked.plan), checked.dataset)
        check_records(parcel, theirs, board, checked.dataset, findings)
        if findings:
            return findings
        files = _joined(checked, parcel, theirs, findings)
        if findings:
            return findings
        staging.replace_together(folder, files, parcel.digest)
    return _told(load_board(folder), parcel.label)


def _told(board: Board, label: str, *, finished: bool = False) -> Merged:
    results = board.results
    missing = results["flags"].eq("missing")
    involved = (results.defense == label) | (results.source == label)
    rows = int(((results.defense == label) & ~missing).sum())
    return Merged(label, rows, int((involved & missing).sum()), finished)


def _joined(checked: Checked, parcel: Parcel, theirs: Plan, findings: Findings) -> dict[str, bytes]:
    """The files of the board with the submission, which is sound if nothing is found.

    Args:
        checked: the board.
        parcel: the submission.
        theirs: its plan.
        findings: where it is noted what is wrong with the board that they make.
    """
    board, identity, dataset = checked.board, checked.identity, checked.dataset
    whole = lay_out(_joined_spec(board.spec, parcel), identity, versions_of(checked.plan) | versions_of(theirs))
    report = _with_sizes(collect(theirs, parcel.store), board.report, theirs)
    tables = _Joint(board.report, report, whole, parcel.label, findings, classes_of(board, dataset)).report()
    texts = {SPEC: whole.spec.to_toml(), DATA: identity_text(identity)}
    texts |= {name: to_csv(frame).decode() for name, frame in tables.tables().items() if name in board.present}
    with tempfile.TemporaryDirectory(prefix="advbench-board-") as name:
        draft = Path(name)
        for file in (*board.references, *board.curve_files, *(board.folder / each for each in (ABOUT, *RUN_FILES))):
            if file.is_file():
                write_file(draft / file.relative_to(board.folder), file.read_bytes())
        for file_name, text in texts.items():
            write_file(draft / file_name, text.encode())
        made = load_board(draft)
        check_content(made, replace(whole, parameters=theirs.parameters), findings, dataset)
        texts |= {} if findings else pages(made)
    return {name: text.encode() for name, text in texts.items()}


def _joined_spec(spec: RunSpec, parcel: Parcel) -> RunSpec:
    """The board's spec with the submission's defense at its place, or at the end."""
    label = parcel.label
    names = spec.defenses if label in spec.defenses else (*spec.defenses, label)
    settings = {name: values for name, values in spec.set.items() if name != label}
    settings |= {name: values for name, values in parcel.spec.set.items() if name not in settings}
    return make_spec({**spec.model_dump(exclude={"set"}, exclude_none=True), "defenses": names, "set": settings})


def _with_sizes(report: Report, board: Report, plan: Plan) -> Report:
    """Tables whose nets' weights are counted, as far as they are known here or on the board."""
    known = dict(zip(board.models.architecture, board.models.parameters, strict=True)) | dict(plan.parameters)
    models = report.models.assign(parameters=report.models.architecture.map(known).astype("Int64"))
    return replace(report, models=models)


class _Joint:
    """The tables of a board and of a submission, as one.

    A row of the board stays where its key is still that of its cell; what the submission says of its defense counts;
    cells that neither has are missing.

    Args:
        ours: the board's tables.
        theirs: the submission's.
        plan: of both.
        label: the submission's defense.
        findings: where it is noted what does not go together.
        classes: of the data, if known.
    """

    def __init__(
        self, ours: Report, theirs: Report, plan: Plan, label: str, findings: Findings, classes: int | None
    ) -> None:
        self._ours, self._theirs, self._label = ours, theirs, label
        self._trained = list(plan.trained)
        due = {place(row): row for row in records(planned(plan))}
        self._kept: dict[Place, Row] = {}
        for row in records(ours.results):
            known = due.get(place(row))
            if known is not None and known["key"] == row["key"]:
                self._kept[place(row)] = row
            elif label not in (row["defense"], row["source"]):
                findings.add("a row of the board would become another", row_name(row))
        self._new: dict[Place, Row] = {}
        for row in records(theirs.results):
            known = due.get(place(row))
            if known is None or known["key"] != row["key"]:
                findings.add("with the board's hyperparameters it would be another defense", row_name(row))
            self._new[place(row)] = row
        self._rows = [dict(self._new.get(where) or self._kept.get(where) or row) for where, row in due.items()]
        for row, flags in zip(self._rows, derived_flags(self._rows, plan, classes), strict=True):
            if flags is not None:
                row["flags"] = flags
        self._order = {where: index for index, where in enumerate(due)}

    def report(self) -> Report:
        """The tables."""
        results = pd.DataFrame(self._rows, columns=RESULT_COLUMNS).astype(
            dict.fromkeys(("n_examples", "draws"), "Int64")
        )
        return Report(
            results=results,
            models=self._models(),
            affinity=self._affinity(results),
            retention=self._details(self._ours.retention, self._theirs.retention),
            uncertainty=self._details(self._ours.uncertainty, self._theirs.uncertainty),
            histograms=self._details(self._ours.histograms, self._theirs.histograms),
        )

    def _models(self) -> pd.DataFrame:
        ours = [row for row in records(self._ours.models) if row["defense"] != self._label]
        rows = [*ours, *records(self._theirs.models)]
        order = {which: index for index, which in enumerate(self._trained)}
        rows.sort(key=lambda row: order.get((row["defense"], row["seed"]), len(order)))
        return pd.DataFrame(rows, columns=MODEL_COLUMNS).astype({"parameters": "Int64"})

    def _details(self, ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
        """Rows of what results say in detail, in the order of the results; those of foreign images come last."""
        kept = [row for row in records(ours) if self._stays(row)]
        rows = sorted([*kept, *records(theirs)], key=lambda row: self._order.get(place(row), len(self._order)))
        return pd.DataFrame(rows, columns=ours.columns)

    def _stays(self, row: Row) -> bool:
        where = place(row)
        return where in self._kept and where not in self._new if where in self._order else row["defense"] != self._label

    def _affinity(self, results: pd.DataFrame) -> pd.DataFrame:
        """What follows from the results, with the intervals and reasons of what was known of the same three cells."""
        due = records(affinity_table(results[~results.attack.isin(with_own_source(results))]))
        # The board's come first: ends of random defenses' intervals hold noise that differs from run to run.
        before = {_pair(row): row for row in records(self._theirs.affinity)}
        ours = (row for row in records(self._ours.affinity) if all(map(self._unchanged, _cells(row))))
        before |= {_pair(row): row for row in ours}
        found = []
        for row in due:
            known = before.get(_pair(row))
            if known is None or not all(same(row[name], known[name]) for name in MEASURED):
                known = row if row["reason"] else {**row, "reason": NOT_AT_HAND}
            found.append({**row, **{name: known[name] for name in ("affinity_low", "affinity_high", "reason")}})
        return pd.DataFrame(found, columns=AFFINITY_COLUMNS)

    def _unchanged(self, where: Place) -> bool:
        """Whether a cell has the result that the board had of it."""
        kept, new = self._kept.get(where), self._new.get(where)
        return kept is not None and (new is None or all(new[name] == kept[name] for name in SHOWN))


def _pair(row: Row) -> Place:
    return tuple(row[name] for name in PAIR)


def _cells(row: Row) -> tuple[Place, Place, Place]:
    """The places of the three cells that an affinity is made of: clean, crafted on the source, on the target itself."""
    attack, eps, seed, source, target = _pair(row)
    return (target, target, "none", 0.0, seed), (source, target, attack, eps, seed), (target, target, attack, eps, seed)
