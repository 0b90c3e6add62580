"""Studies: the runs that repeat a table or figure of a paper, and what the paper prints there.

A paper is a folder that a plugin registers; each of its items, a table or figure, is a folder in it:

- `paper.toml`: what the item shows, and the run in the paper's own setting;
- `small.toml`, if there is one: what changes for two CPU cores, and which conclusions that forbids;
- `published.csv`, if the paper prints numbers: each of them with the cell of the run that it belongs to.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pydantic

from advbench.boards.board import ABOUT, DATA, SPEC, Board, build, read_board, write_inside
from advbench.errors import InputError, unknown_name
from advbench.grid.identity import identity_text
from advbench.grid.plan import Plan
from advbench.grid.spec import BOARD, RunSpec, make_spec, parse_toml
from advbench.registry import registry
from advbench.store.records import Store

SCALES = ("small", "paper")
LEAST = "paper.toml"  # the file that makes a folder an item


class Cell(NamedTuple):
    """Where a number of a study is: a column of a table, in the row of a cell."""

    number: str  # a column of results, uncertainty, models or affinity; retained_N of retention
    part: str
    defense: str
    attack: str = "none"
    eps: float = 0.0
    source: str = ""  # of transferred examples; by default the defense itself


class Published(NamedTuple):
    """A number that a paper prints."""

    cell: Cell | None  # None where no run has it
    reason: str  # why
    place: tuple[str, ...]  # data set, net, method, condition and metric, as printed
    value: float
    deviation: float  # as printed, else half a unit of the last digit that is

    @property
    def percent(self) -> bool:
        """Whether it is in per cent."""
        return "%" in self.place[-1]


class Claim(pydantic.BaseModel):
    """An inequality that a paper states or its figure shows: each cell of `above` is larger than each of `below`.

    A cell of either is the fields of `Cell` that differ from those of `at`.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    says: str
    at: dict[str, Any] = {}
    above: list[dict[str, Any]] = pydantic.Field(min_length=1)
    below: list[dict[str, Any]] = pydantic.Field(min_length=1)

    def pairs(self) -> Iterator[tuple[Cell, Cell]]:
        """The larger and the smaller cell of each inequality."""
        for above, below in itertools.product(self.above, self.below):
            yield Cell(**{**self.at, **above}), Cell(**{**self.at, **below})


class _File(pydantic.BaseModel):
    """`paper.toml`; `small.toml` has the same fields, all but optional."""

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
        """What people call it, as `apd/table1`."""
        return f"{self.paper}/{self.name}"

    @property
    def scales(self) -> list[str]:
        """The scales at which there is a run."""
        return [scale for scale in SCALES if (self.folder / f"{scale}.toml").is_file() and not self.missing]

    @property
    def missing(self) -> str:
        """What advbench lacks to run it; empty where nothing."""
        return str(parse_toml(self.folder / LEAST).get("missing", ""))


class Study(NamedTuple):
    """An item at one scale.

    Attributes:
        item: the item.
        scale: one of `SCALES`.
        title: what the table or figure is about.
        shows: what the paper concludes from it.
        settings: where the settings are from.
        needs: data sets, GPU, and what advbench lacks; for `--list`.
        cuts: what is less than in the paper.
        forbids: what these cuts forbid to conclude.
        parts: the runs, by name.
        published: the numbers that the paper prints.
        claims: what it says without numbers.
    """

    item: Item
    scale: str
    title: str
    shows: str
    settings: str
    needs: tuple[str, ...]
    cuts: str
    forbids: str
    parts: Mapping[str, RunSpec]
    published: tuple[Published, ...]
    claims: tuple[Claim, ...]


def all_items() -> list[Item]:
    """The items of all registered papers."""
    found = []
    for entry in registry().entries("paper"):
        folder: Path = registry().load("paper", entry.name)
        names = sorted(path.parent.name for path in folder.glob(f"*/{LEAST}"))
        found += [Item(entry.name, name, folder / name) for name in names]
    return found


def find_item(title: str) -> Item:
    """The item of a title.

    Raises:
        InputError: there is none.
    """
    items = {item.title: item for item in all_items()}
    if title not in items:
        raise unknown_name("study", title, items, remedy="'advbench reproduce --list' shows all")
    return items[title]


def read_study(item: Item, scale: Literal["small", "paper"] | str) -> Study:
    """An item at a scale; where advbench cannot run it, without parts.

    Raises:
        InputError: an unknown scale, or files that are damaged.
    """
    path = item.folder / f"{scale}.toml"
    if scale not in SCALES or not path.is_file():
        known = [each for each in SCALES if (item.folder / f"{each}.toml").is_file()]
        raise unknown_name(f"scale of {item.title}", scale, known)
    values = parse_toml(item.folder / LEAST)
    if scale != "paper":
        values = _smaller(values, parse_toml(path))
    try:
        file = _File.model_validate(values)
        parts = {} if file.missing or not file.run else {"run": file.run}
        if file.parts and parts:
            parts = {name: merged(file.run, changes) for name, changes in file.parts.items()}
        specs = {name: make_spec(each) for name, each in parts.items()}
        published = tuple(_published(item.folder / "published.csv"))
    except (pydantic.ValidationError, ValueError, KeyError) as error:
        raise InputError(f"study {path}", expected="one that advbench can read", got=str(error)) from error
    data = sorted({name for spec in specs.values() for name in (spec.dataset, *spec.ood)})
    needs = (*data, *(["GPU"] if file.gpu else []), *([file.missing] if file.missing else []))
    texts = (file.title, file.shows, file.settings, needs, file.cuts, file.forbids)
    return Study(item, scale, *texts, specs, published, tuple(file.claims))


def _smaller(whole: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `small.toml` on top of those of `paper.toml`; where it names parts, those alone."""
    parts = {name: merged(whole.get("parts", {}).get(name, {}), own) for name, own in changes.get("parts", {}).items()}
    values = merged(whole, {name: value for name, value in changes.items() if name != "parts"})
    return {**values, "gpu": changes.get("gpu", False), **({"parts": parts} if parts else {})}


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Values on top of others, table by table."""
    both = {
        name: merged(below[name], value) if isinstance(value, dict) and isinstance(below.get(name), dict) else value
        for name, value in above.items()
    }
    return {**below, **both}


def _published(path: Path) -> Iterator[Published]:
    """The rows of `published.csv`."""
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
                raise ValueError(f"a number in {path.name} that is not finite")


def take_over(folder: Path, plan: Plan, store: Store) -> None:
    """Put the evaluations that a board has of a plan into a store, where they are missing, so that none runs again."""
    if not (folder / BOARD).is_file():
        return
    records = read_board(folder).records
    wanted = [task.key for task in plan.tasks.values() if task.kind == "evaluate" and task.key in records]
    for key in set(wanted) - store.done(wanted):
        store.write_record(key, records[key])


def publish(folder: Path, plan: Plan, study: Study, store: Store) -> Board:
    """Write a part of a study as a board, from the results of a store and those that the board has.

    Raises:
        InputError: there is no result, or the folder holds something else.
        StoreError: the folder cannot be written.
    """
    assert plan.identity is not None, "the data of a run that was carried out are known"
    about = f"A run of the study `{study.item.title}` at scale `{study.scale}`: {study.title}.\n\n{study.shows}\n\n"
    about += "[comparison.md](../comparison.md) has the paper's numbers beside these.\n"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in ((SPEC, plan.spec.to_toml()), (DATA, identity_text(plan.identity)), (ABOUT, about)):
        write_inside(folder, name, text.encode())
    return build(folder, store)
