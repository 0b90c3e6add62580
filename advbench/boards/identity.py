"""What a board's keys rest on: which data, and which version of advbench."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from advbench.boards.board import DATA, release, stated_versions
from advbench.config import Choice, RunSpec, resolve
from advbench.datasets import DEFAULT_ROOT, Dataset, load_dataset
from advbench.errors import AdvbenchError, InputError
from advbench.foreign import Foreign, identify_foreign
from advbench.plan import DataIdentity, Plan, make_plan
from advbench.registry import registry
from advbench.run import count_parameters
from advbench.tasks import identify

# Where torchvision keeps the data sets that it can download, below the root.
DOWNLOADED = {
    "mnist": "MNIST/raw",
    "fashion_mnist": "FashionMNIST/raw",
    "cifar10": "cifar-10-batches-py",
    "cifar100": "cifar-100-python",
    "stl10": "stl10_binary",
    "svhn": "train_32x32.mat",
    "gtsrb": "gtsrb",
}
CORE = "advbench"


class Identity(NamedTuple):
    """What keys hold of a board's data.

    Attributes:
        data: the data set.
        foreign: those whose images are shown as well.
    """

    data: DataIdentity
    foreign: tuple[Foreign, ...] = ()


def read_identity(folder: Path) -> Identity | None:
    """What a folder's `data.json` says of the data; None where there is no such file.

    Raises:
        InputError: it cannot be read.
    """
    path = folder / DATA
    if not path.exists():
        return None
    try:
        return parse_identity(path.read_bytes())
    except (OSError, ValueError) as error:
        expected = "a JSON object with name, sha256, train_count and test_count"
        raise InputError(f"file {path}", expected=expected, got=str(error)) from error


def parse_identity(raw: bytes) -> Identity:
    """The content of a `data.json`.

    Raises:
        ValueError: the bytes are none.
    """
    try:
        values = json.loads(raw)
    except RecursionError as error:
        raise ValueError("lists in lists without end") from error
    others = values.pop("foreign", []) if isinstance(values, dict) else []
    if not isinstance(others, list) or len(others) > 100:
        raise ValueError(f"foreign {others!r}")
    data = _taken(values, {"name": str, "sha256": str, "train_count": int, "test_count": int})
    kinds = {"name": str, "label": str, "sha256": str, "images": int, "scale": float}
    return Identity(DataIdentity(*data), tuple(Foreign(*_taken(each, kinds)) for each in others))


def _taken(values: object, kinds: Mapping[str, type]) -> Iterator[Any]:
    """The values of an object that has these and no others."""
    if not isinstance(values, dict) or set(values) != set(kinds):
        raise ValueError("other entries")
    for name, kind in kinds.items():
        if type(values[name]) is not kind or (name == "sha256" and not re.fullmatch(r"[0-9a-f]{64}", values[name])):
            raise ValueError(f"{name} {values[name]!r}")
        yield values[name]


def data_at_hand(name: str, data_root: str | None) -> Dataset | None:
    """A data set if it takes no download; else None.

    Args:
        name: as `load_dataset` takes it.
        data_root: folder of the data sets.
    """
    kind, _, path = name.partition(":")
    root = Path(data_root) if data_root else DEFAULT_ROOT
    there = kind == "digits" or bool(path) or (kind in DOWNLOADED and (root.expanduser() / DOWNLOADED[kind]).exists())
    if not there:
        return None
    try:
        return load_dataset(name, data_root)
    except AdvbenchError:
        return None


def identify_data(spec: RunSpec, data_root: str | None) -> Identity:
    """What keys hold of a spec's data, which is downloaded if need be.

    Raises:
        InputError: it is absent or malformed.
    """
    foreign = identify_foreign(spec.ood, data_root, spec.ood_scale)
    return Identity(identify(load_dataset(spec.dataset, data_root)), tuple(foreign))


def lay_out(spec: RunSpec, identity: Identity, version: str | None = None, dataset: Dataset | None = None) -> Plan:
    """The plan of a spec, without its data.

    Args:
        spec: the run.
        identity: of the data.
        version: of advbench and its own plugins, for the keys; by default that of the installed one.
        dataset: where it is at hand, so that the nets' weights can be counted.

    Raises:
        InputError: an unknown name or a bad value in the spec.
    """
    defenses, attacks = resolve(spec)
    core = installed_version() if version is None else version
    chosen = tuple(_as_of(choice, core) for choice in defenses), tuple(_as_of(choice, core) for choice in attacks)
    parameters = {} if dataset is None else count_parameters(defenses, dataset)
    return make_plan(spec, *chosen, identity.data, core, parameters, identity.foreign)


def installed_version() -> str:
    """The version of advbench that goes into keys."""
    return registry().find("dataset", "digits").version


def plan_as_made(spec: RunSpec, identity: Identity, results: pd.DataFrame, dataset: Dataset | None = None) -> Plan:
    """The plan with the keys of the version that a board's rows state.

    Rows state a release; a checkout's keys hold more than that, so where the release is the installed one, the plan
    is the one of the two that fits more rows.

    Args:
        spec: of the board.
        identity: of the data.
        results: its rows.
        dataset: where it is at hand.

    Raises:
        InputError: an unknown name or a bad value in the spec.
    """
    installed = installed_version()
    stated = [found[CORE] for text in results.versions if (found := stated_versions(text)).get(CORE)]
    version = max(dict.fromkeys(stated), key=stated.count) if stated else installed
    plan = lay_out(spec, identity, version, dataset)
    if version == installed or release(version) != release(installed):
        return plan
    other, keys = lay_out(spec, identity, installed, dataset), set(results.key)
    return max(plan, other, key=lambda each: sum(cell.key in keys for cell in each.cells))


def version_of(plan: Plan) -> str:
    """The version of advbench that is in a plan's keys."""
    return str(next(iter(plan.tasks.values())).inputs["advbench"])


def _as_of(choice: Choice, version: str) -> Choice:
    entry, net = choice.entry, dict(choice.architecture)
    if entry.distribution == CORE:
        entry = dataclasses.replace(entry, version=version)
    if net.get("distribution") == CORE:
        net["version"] = version
    if "built_on" in net:
        net["built_on"] = _libraries_as_of(net["built_on"], version)
    built_on = _libraries_as_of(choice.built_on, version)
    init = _as_of(choice.init, version) if choice.init else None
    return choice._replace(entry=entry, architecture=net, built_on=built_on, init=init)


def _libraries_as_of(libraries: Mapping[str, Any], version: str) -> dict[str, Any]:
    return {name: version if name == CORE else found for name, found in libraries.items()}
