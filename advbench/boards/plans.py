"""The plan of a board, with the keys of the version that made it, and without its data where they are not at hand."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from advbench.boards.board import stated_versions
from advbench.data.datasets import DEFAULT_ROOT, Dataset, load_dataset
from advbench.errors import AdvbenchError
from advbench.grid.identity import Identity
from advbench.grid.plan import Plan, make_plan
from advbench.grid.run import count_parameters
from advbench.grid.spec import CORE, Choice, RunSpec, resolve
from advbench.registry import checkout_digest, distribution_version

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


def lay_out(
    spec: RunSpec,
    identity: Identity,
    versions: Mapping[str, str] | None = None,
    dataset: Dataset | None = None,
) -> Plan:
    """The plan of a spec, without its data.

    Args:
        spec: the run.
        identity: of the data.
        versions: of plugins' distributions, for the keys; by default those that are installed. That of advbench is
            the digest of a checkout, empty of a release.
        dataset: where it is at hand, so that the nets' weights can be counted.

    Raises:
        InputError: an unknown name or a bad value in the spec.
    """
    defenses, attacks = resolve(spec)
    known = versions or {}
    chosen = tuple(_as_of(choice, known) for choice in defenses), tuple(_as_of(choice, known) for choice in attacks)
    parameters = {} if dataset is None else count_parameters(defenses, dataset.train)
    checkout = known[CORE] if CORE in known else checkout_digest()
    return make_plan(spec, *chosen, identity, checkout or None, parameters)


def installed_version() -> str:
    """The version of advbench."""
    return distribution_version(importlib.metadata.distribution(CORE))


def plan_as_made(spec: RunSpec, identity: Identity, results: pd.DataFrame, dataset: Dataset | None = None) -> Plan:
    """The plan with the keys of the versions that a board's rows state.

    A checkout's keys hold a digest of its sources, so the plan is the one of the two that fits more rows.

    Args:
        spec: of the board.
        identity: of the data.
        results: its rows.
        dataset: where it is at hand.

    Raises:
        InputError: an unknown name or a bad value in the spec.
    """
    stated, keys = _most_stated(results), set(results.key)
    plans = [lay_out(spec, identity, {**stated, CORE: made}, dataset) for made in ("", checkout_digest() or "")]
    return max(plans, key=lambda each: sum(cell.key in keys for cell in each.cells))


def _most_stated(results: pd.DataFrame) -> dict[str, str]:
    """The version of each library that most rows state."""
    count: dict[str, Counter[str]] = {}
    for text, rows in results.versions.value_counts(sort=False).items():
        for name, version in stated_versions(str(text)).items():
            count.setdefault(name, Counter())[version] += rows
    return {name: found.most_common(1)[0][0] for name, found in count.items()}


def versions_of(plan: Plan) -> dict[str, str]:
    """The versions of plugins' distributions and of what they are built on that are in a plan's keys."""
    found: dict[str, str] = {}
    for task in plan.tasks.values():
        found[CORE] = task.inputs.checkout or ""
        inputs = task.inputs.to_json()
        for kind in ("defense", "architecture", "attack"):
            used = inputs.get(kind)
            if used:
                own = {} if used["distribution"] == CORE else {used["distribution"]: used["version"]}
                found |= {**own, **used.get("built_on", {})}
    return found


def _as_of(choice: Choice, versions: Mapping[str, str]) -> Choice:
    entry, net = choice.entry, choice.net
    made_by = versions.get(entry.distribution, entry.version)
    version = made_by if choice.version == entry.version else choice.version
    entry = dataclasses.replace(entry, version=made_by)
    if net:
        libraries = _libraries_as_of(net.built_on, versions) if net.built_on else None
        of_net = net.version if net.distribution == CORE else versions.get(net.distribution, net.version)
        net = dataclasses.replace(net, version=of_net, built_on=libraries)
    built_on = _libraries_as_of(choice.built_on, versions)
    init = _as_of(choice.init, versions) if choice.init else None
    return choice._replace(entry=entry, version=version, net=net, built_on=built_on, init=init)


def _libraries_as_of(libraries: Mapping[str, Any], versions: Mapping[str, str]) -> dict[str, Any]:
    return {name: versions.get(name, found) for name, found in libraries.items()}
