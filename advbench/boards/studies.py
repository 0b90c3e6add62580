"""Studies: runs that reproduce a table or figure of a paper, and the published numbers.

A paper is a folder that a plugin registers; each of its items, a table or figure, is a folder in it:

- `paper.toml`: description of the item, and its run with the paper's settings;
- `small.toml` (optional): changes for two CPU cores, and the conclusions that these do not support;
- `published.csv` (optional): published numbers, each with its cell of the run.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pydantic

from advbench.boards.board import ABOUT, SPEC, Board, build, read_board, write_inside
from advbench.errors import InputError, unknown_name
from advbench.grid.identity import DATA
from advbench.grid.plan import Plan
from advbench.grid.spec import BOARD, RunSpec, make_spec, parse_toml
from advbench.registry import registry
from advbench.store.records import Store

SCALES = ("small", "paper")
PLACE = ("dataset", "architecture")
LEAST = "paper.toml"  # marks the folder of an item


class Cell(NamedTuple):
    """Location of a number in a study: a column of a table, in the row of a cell."""

    number: str  # column of a table, or one of the numbers that `comparison` makes of several
    part: str
    defense: str
    attack: str = "none"
    eps: float = 0.0
    source: str = ""  # source of transferred examples; by default the defense itself


class Published(NamedTuple):
    """A published number."""

    cell: Cell | None  # None if no run computes it
    reason: str  # reason if None
    place: tuple[str, ...]  # data set, net, method, condition and metric, as in the paper
    value: float
    deviation: float  # as printed, or half a unit of the last printed digit

    @property
    def percent(self) -> bool:
        """True if it is in per cent."""
        return "%" in self.place[-1]


class Claim(pydantic.BaseModel):
    """An inequality in a paper: each cell of `above` is larger than each of `below`, by more than `by`.

    Cells of both are given by the fields of `Cell` that differ from `at`. Without `below`, `by` is a constant that
    they exceed.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    says: str
    at: dict[str, Any] = {}
    above: list[dict[str, Any]] = pydantic.Field(min_length=1)
    below: list[dict[str, Any]] = []
    by: float = 0.0

    def pairs(self) -> Iterator[tuple[Cell, Cell | None]]:
        """Larger and smaller cell of each inequality; None if the smaller side is a constant."""
        for above in self.above:
            larger = Cell(**{**self.at, **above})
            yield from ((larger, Cell(**{**self.at, **below})) for below in self.below)
            if not self.below:
                yield larger, None


class StudyFile(pydantic.BaseModel):
    """Content of `paper.toml`; `small.toml` has the same fields, all optional.

    Attributes:
        title: topic of the table or figure.
        shows: the paper's conclusion from it.
        settings: source of the settings.
        missing: features that advbench lacks for it.
        gpu: True if it needs a GPU.
        cuts: reductions relative to the paper.
        forbids: conclusions that these reductions do not support.
        run: settings of the run.
        parts: changes of these settings, by part.
        claims: claimed inequalities.
    """

    model_config = pydantic.ConfigDict(extra="forbid")

    title: str
    shows: str
    settings: str
    missing: str = ""
    gpu: bool = False
    cuts: str = ""
    forbids: str = ""
    run: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    claims: list[Claim] = []


class Item(NamedTuple):
    """A table or figure of a paper."""

    paper: str
    name: str
    folder: Path

    @property
    def title(self) -> str:
        """Name of the item, such as `apd/table1`."""
        return f"{self.paper}/{self.name}"

    @property
    def scales(self) -> list[str]:
        """Scales with a run."""
        return [scale for scale in SCALES if (self.folder / f"{scale}.toml").is_file() and not self.missing]

    @property
    def missing(self) -> str:
        """Missing features for running it; empty if none."""
        return str(parse_toml(self.folder / LEAST).get("missing", ""))


class Study(NamedTuple):
    """An item at one scale.

    Attributes:
        item: the item.
        scale: one of `SCALES`.
        file: its texts and claims.
        needs: data sets, GPU and missing features, for `--list`.
        parts: runs by name.
        published: published numbers.
        replaced: parts whose data set or network is not the paper's at this scale.
    """

    item: Item
    scale: str
    file: StudyFile
    needs: tuple[str, ...]
    parts: Mapping[str, RunSpec]
    published: tuple[Published, ...]
    replaced: frozenset[str] = frozenset()


def all_items() -> list[Item]:
    """Items of all registered papers."""
    found = []
    for entry in registry().entries("paper"):
        folder: Path = registry().load("paper", entry.name)
        names = sorted(path.parent.name for path in folder.glob(f"*/{LEAST}"))
        found += [Item(entry.name, name, folder / name) for name in names]
    return found


def find_item(title: str) -> Item:
    """Find an item by its title.

    Raises:
        InputError: the title is unknown.
    """
    items = {item.title: item for item in all_items()}
    if title not in items:
        raise unknown_name("study", title, items, remedy="'advbench reproduce --list' shows all")
    return items[title]


def read_study(item: Item, scale: Literal["small", "paper"] | str) -> Study:
    """Read an item at a scale; it has no parts if advbench cannot run it.

    Raises:
        InputError: the scale is unknown, or files are malformed.
    """
    path = item.folder / f"{scale}.toml"
    if scale not in SCALES or not path.is_file():
        known = [each for each in SCALES if (item.folder / f"{each}.toml").is_file()]
        raise unknown_name(f"scale of {item.title}", scale, known)
    whole = values = parse_toml(item.folder / LEAST)
    if scale != "paper":
        values = _smaller(whole, parse_toml(path))
    try:
        file = StudyFile.model_validate(values)
        parts = {} if file.missing or not file.run else {"run": file.run}
        if file.parts and parts:
            parts = {name: merged(file.run, changes) for name, changes in file.parts.items()}
        theirs = {name: merged(whole["run"], whole.get("parts", {}).get(name, {})) for name in parts}
        specs = {name: make_spec(_of_own(each, whole["run"], theirs[name])) for name, each in parts.items()}
        published = tuple(_published(item.folder / "published.csv"))
    except (pydantic.ValidationError, ValueError, KeyError) as error:
        raise InputError(f"study {path}", expected="a valid study", got=str(error)) from error
    data = sorted({name for spec in specs.values() for name in (spec.dataset, *spec.ood)})
    needs = (*data, *(["GPU"] if file.gpu else []), *([file.missing] if file.missing else []))
    replaced = {name for name in parts if any(parts[name].get(key) != theirs[name].get(key) for key in PLACE)}
    return Study(item, scale, file, needs, specs, published, frozenset(replaced))


def _smaller(whole: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values of `paper.toml` updated with `small.toml`; if the latter has parts, only those."""
    parts = {name: merged(whole.get("parts", {}).get(name, {}), own) for name, own in changes.get("parts", {}).items()}
    values = merged(whole, {name: value for name, value in changes.items() if name != "parts"})
    return {**values, "gpu": changes.get("gpu", False), **({"parts": parts} if parts else {})}


def _of_own(run: Mapping[str, Any], whole: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """A run without the paper's settings of defenses and attacks, or of a network, that it does not use."""
    used, named = ({*each.get("defenses", ()), *each.get("attacks", ())} for each in (run, whole))
    unused = named - used | ({"arch"} if run.get("architecture") != theirs.get("architecture") else set())
    return {**run, "set": {label: each for label, each in run.get("set", {}).items() if label not in unused}}


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Update values with others, table by table."""
    both = {
        name: merged(below[name], value) if isinstance(value, dict) and isinstance(below.get(name), dict) else value
        for name, value in above.items()
    }
    return {**below, **both}


def _published(path: Path) -> Iterator[Published]:
    """Read the rows of `published.csv`."""
    if not path.is_file():
        return
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            printed = row["value"]
            decimals = len(printed.partition(".")[2])
            deviation = float(row["deviation"]) if row["deviation"] else 0.5 * 10**-decimals
            where = (row["part"], row["defense"], row["attack"] or "none", float(row["eps"] or 0), row["source"])
            cell = Cell(row["number"], *where) if row["number"] else None
            place = tuple(row[name] for name in ("dataset", "architecture", "method", "condition", "metric"))
            yield Published(cell, row["reason"], place, float(printed), deviation)
            if not math.isfinite(float(printed)):
                raise ValueError(f"non-finite number in {path.name}")


def take_over(folder: Path, plan: Plan, store: Store) -> None:
    """Copy evaluations of a plan from a board into a store that lacks them, so that they are not recomputed."""
    if not (folder / BOARD).is_file():
        return
    records = read_board(folder).records
    wanted = [task.key for task in plan.tasks.values() if task.kind == "evaluate" and task.key in records]
    for key in set(wanted) - store.done(wanted):
        store.write_record(key, records[key])


def publish(folder: Path, plan: Plan, study: Study, store: Store) -> Board:
    """Write a part of a study as a board, from the results of a store and of the board itself.

    Raises:
        InputError: there are no results, or the folder has other content.
        StoreError: the folder cannot be written.
    """
    assert plan.identity is not None, "the data of an executed run are known"
    about = f"A run of the study `{study.item.title}` at scale `{study.scale}`: {study.file.title}.\n\n"
    about += f"The paper: {study.file.shows}\n\n" + (f"Cuts: {study.file.cuts}\n\n" if study.file.cuts else "")
    about += "[comparison.md](../comparison.md) compares these numbers with the paper's.\n"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in ((SPEC, plan.spec.to_toml()), (DATA, plan.identity.to_bytes().decode()), (ABOUT, about)):
        write_inside(folder, name, text.encode())
    return build(folder, store)
