"""Finds plugins: a name leads to a lazily loaded class, with the distribution and version it came from."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import importlib.metadata
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import unquote, urlparse

import pluggy

from advbench.errors import AdvbenchError, InputError, unknown_name
from advbench.registry import builtins, hooks

Kind = Literal["defense", "attack", "architecture", "dataset", "posterior", "noise"]
KINDS: tuple[Kind, ...] = get_args(Kind)
GROUP = "advbench"
RESULTS_DEPEND_ON = (
    *(f"advbench/{package}/" for package in ("attacks", "data", "evaluation", "models", "training")),
    "advbench/grid/tasks.py",
    "advbench/keys.py",
    "plugins/",
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One registered name, or a family of them: `library:` stands for every `library:NAME`."""

    kind: Kind
    name: str
    target: str
    summary: str
    distribution: str
    version: str

    @property
    def is_family(self) -> bool:
        """Whether `target` is a function that makes what a name of the family stands for."""
        return self.name.endswith(":")

    @property
    def shown(self) -> str:
        """The name for people."""
        return f"{self.name}NAME" if self.is_family else self.name


@dataclass(frozen=True, slots=True)
class Problem:
    """A plugin that failed to load, and why."""

    plugin: str
    distribution: str
    reason: str

    def __str__(self) -> str:
        return f"plugin {self.plugin!r} of {self.distribution} failed to load: {self.reason}"


class Registrar:
    """What a plugin's `advbench_register` receives; collects its declarations.

    A name that ends in a colon declares a family, as `torchattacks:`: its target is a function that is given what
    follows the colon and returns what the other kind of target names.
    """

    def __init__(self, distribution: str, version: str) -> None:
        self._distribution = distribution
        self._version = version
        self.entries: list[Entry] = []

    def defense(self, name: str, target: str, summary: str) -> None:
        """Declare a training method: `target` is the `"module:Class"` of an `advbench.training.Defense`."""
        self._add("defense", name, target, summary)

    def attack(self, name: str, target: str, summary: str) -> None:
        """Declare an attack: `target` is the `"module:Class"` of an `advbench.attacks.Attack`."""
        self._add("attack", name, target, summary)

    def architecture(self, name: str, target: str, summary: str) -> None:
        """Declare a net: `target` is a function `(channels, height, width, classes) -> nn.Module`."""
        self._add("architecture", name, target, summary)

    def dataset(self, name: str, target: str, summary: str) -> None:
        """Declare a data set: `target` is a function `(root, path) -> advbench.data.Dataset`."""
        self._add("dataset", name, target, summary)

    def posterior(self, name: str, target: str, summary: str) -> None:
        """Declare a distribution over weights: `target` is an `advbench.models.Posterior` of that `kind`."""
        self._add("posterior", name, target, summary)

    def noise(self, name: str, target: str, summary: str) -> None:
        """Declare noise inside a module: `target` is an `advbench.models.Noise` of that `kind`."""
        self._add("noise", name, target, summary)

    def _add(self, kind: Kind, name: str, target: str, summary: str) -> None:
        module, _, attribute = target.partition(":")
        if not name.removesuffix(":").replace("_", "").isalnum() or not name.isascii():
            raise InputError(f"{kind} name {name!r}", expected="letters, digits and underscores")
        if not (module and attribute):
            raise InputError(f"target of {kind} {name!r}", expected="'module:attribute'", got=repr(target))
        self.entries.append(Entry(kind, name, target, summary, self._distribution, self._version))


class Registry:
    """Every name that the installed plugins offer.

    Args:
        manager: a plugin manager to read; by default a new one over the installed distributions'
            entry points of the group `advbench`.
    """

    def __init__(self, manager: pluggy.PluginManager | None = None) -> None:
        self.problems: list[Problem] = []
        self._entries: dict[tuple[Kind, str], list[Entry]] = {}
        self.manager = manager or pluggy.PluginManager(hooks.PROJECT)
        self.manager.add_hookspecs(hooks)
        self._load(builtins, "advbench", importlib.metadata.distribution("advbench"))
        for entry_point in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda e: e.name):
            distribution = entry_point.dist
            assert distribution is not None, "entry points read from installed distributions carry theirs"
            try:
                plugin = entry_point.load()
            except Exception as error:
                self._report(entry_point.name, distribution.name, error)
            else:
                self._load(plugin, entry_point.name, distribution)

    def _load(self, plugin: object, name: str, distribution: importlib.metadata.Distribution) -> None:
        registrar = Registrar(distribution.name, distribution_version(distribution))
        try:
            self.manager.register(plugin, name=name)
            self.manager.check_pending()
            others = [p for p in self.manager.get_plugins() if p is not plugin]
            self.manager.subset_hook_caller("advbench_register", others)(register=registrar)
        except Exception as error:
            if self.manager.is_registered(plugin):
                self.manager.unregister(plugin)
            self._report(name, distribution.name, error)
        else:
            for entry in registrar.entries:
                self._entries.setdefault((entry.kind, entry.name), []).append(entry)

    def _report(self, plugin: str, distribution: str, error: Exception) -> None:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        self.problems.append(Problem(plugin, distribution, reason))

    def entries(self, kind: Kind | None = None) -> Iterator[Entry]:
        """The registered names in the order of kinds, then of names."""
        for key in sorted(self._entries, key=lambda k: (KINDS.index(k[0]), k[1])):
            if kind in (None, key[0]):
                yield self._entries[key][0]

    def duplicates(self) -> list[InputError]:
        """One error for each name that two plugins claim."""
        return [self._duplicate(found) for found in self._entries.values() if len(found) > 1]

    @staticmethod
    def _duplicate(found: list[Entry]) -> InputError:
        owners = " and ".join(f"{e.distribution} {e.version} ({e.target})" for e in found)
        return InputError(
            f"{found[0].kind} name {found[0].name!r} is registered twice, by {owners}",
            remedy="uninstall one of them or ask its author to rename",
        )

    def _claims(self, kind: Kind, name: str) -> list[Entry]:
        family, colon, member = name.partition(":")
        return self._entries.get((kind, family + colon), []) if member or not colon else []

    def knows(self, kind: Kind, name: str) -> bool:
        """Whether the name is registered, or of a registered family."""
        return bool(self._claims(kind, name))

    def find(self, kind: Kind, name: str) -> Entry:
        """The entry of a name; of a member of a family the family's, under the member's name.

        Raises:
            InputError: the name is unknown, or two plugins claim it.
        """
        found = self._claims(kind, name)
        if not found:
            broken = "; ".join(f"{p.plugin} ({p.reason})" for p in self.problems)
            raise unknown_name(
                kind,
                name,
                [entries[0].shown for (k, _), entries in self._entries.items() if k == kind],
                remedy="'advbench plugins' lists what is registered",
                note=f"these plugins failed to load: {broken}" if broken else "",
            )
        if len(found) > 1:
            raise self._duplicate(found)
        return dataclasses.replace(found[0], name=name)

    def load(self, kind: Kind, name: str) -> Any:
        """Import and return what a name stands for.

        Raises:
            InputError: the name is unknown or claimed twice, its target cannot be imported, or its family has no
                such member.
        """
        entry = self.find(kind, name)
        module, _, attribute = entry.target.partition(":")
        try:
            found = getattr(importlib.import_module(module), attribute)
            _, _, member = name.partition(":")
            return found(member) if member else found
        except AdvbenchError:
            raise
        except Exception as error:
            raise InputError(
                f"{kind} {name!r} of {entry.distribution} {entry.version} cannot be loaded from "
                f"{entry.target}: {type(error).__name__}: {error}",
                remedy="reinstall or update that distribution",
            ) from error


@functools.cache
def registry() -> Registry:
    """The registry of the installed plugins, built at first use."""
    return Registry()


def distribution_version(distribution: importlib.metadata.Distribution) -> str:
    """The version of a distribution; an editable install adds a digest of its sources.

    A release never changes under its version. A checkout does, and results computed by older code must
    not be taken for the present code's.
    """
    folder = _checkout(distribution)
    return distribution.version if folder is None else f"{distribution.version}+{_source_digest(folder)}"


def checkout_digest() -> str | None:
    """A digest of those of advbench's sources that results depend on, if it is installed editable; else None.

    What results mean is versioned by `SCHEMA` and by plugins' own versions; between two of these a checkout's code may
    change at any time.
    """
    folder = _checkout(importlib.metadata.distribution("advbench"))
    return None if folder is None else _source_digest(folder, RESULTS_DEPEND_ON)


def _checkout(distribution: importlib.metadata.Distribution) -> str | None:
    """The folder of the sources of an editable install; None of any other."""
    source = json.loads(distribution.read_text("direct_url.json") or "{}")
    return unquote(urlparse(source["url"]).path) if source.get("dir_info", {}).get("editable") else None


@functools.cache
def _source_digest(folder: str, below: tuple[str, ...] = ("",)) -> str:
    skipped = {"tests", "build", "dist", "node_modules"}
    digest = hashlib.sha256()
    for path in sorted(Path(folder).rglob("*.py")):
        parts = path.relative_to(folder).parts
        hidden = any(part.startswith(".") or part in skipped for part in parts)
        if not hidden and "/".join(parts).startswith(below):
            digest.update("/".join(parts).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
