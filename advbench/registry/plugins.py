"""Discovery of plugins: names of lazily loaded classes, with their distribution and version."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import importlib.metadata
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import unquote, urlparse

import pluggy

from advbench.errors import AdvbenchError, InputError, one_line, unknown_name
from advbench.registry import builtins, files, hooks

Kind = Literal["defense", "attack", "architecture", "dataset", "posterior", "noise", "paper"]
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
    """A registered name, or a family of names: `library:` stands for every `library:NAME`."""

    kind: Kind
    name: str
    target: str
    summary: str
    distribution: str
    version: str

    @property
    def is_family(self) -> bool:
        """True if `target` is a function that creates the members of a family."""
        return self.name.endswith(":")

    @property
    def shown(self) -> str:
        """Display name."""
        return f"{self.name}NAME" if self.is_family else self.name

    @property
    def called(self) -> str:
        """The name as written by users."""
        return self.target if self.distribution == files.FILE else self.name


class Registrar:
    """Collects the declarations in a plugin's `advbench_register`.

    A name that ends in a colon declares a family, such as `torchattacks:`; its target is a function that takes the part
    of a name after the colon and returns the class or function for it.
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
        """Declare a distribution over weights: `target` is the `advbench.models.Posterior` of that `kind`."""
        self._add("posterior", name, target, summary)

    def noise(self, name: str, target: str, summary: str) -> None:
        """Declare noise inside a module: `target` is the `advbench.models.Noise` of that `kind`."""
        self._add("noise", name, target, summary)

    def paper(self, name: str, target: str, summary: str) -> None:
        """Declare studies of a paper: `target` is the `pathlib.Path` of their folder (`advbench.boards.studies`)."""
        self._add("paper", name, target, summary)

    def _add(self, kind: Kind, name: str, target: str, summary: str) -> None:
        module, _, attribute = target.partition(":")
        if not name.removesuffix(":").replace("_", "").isalnum() or not name.isascii():
            raise InputError(f"{kind} name {name!r}", expected="letters, digits and underscores")
        if not (module and attribute):
            raise InputError(f"target of {kind} {name!r}", expected="'module:attribute'", got=repr(target))
        self.entries.append(Entry(kind, name, target, summary, self._distribution, self._version))


class Registry:
    """All names declared by the core and the installed distributions.

    Attributes:
        problems: a sentence for each plugin that failed to load.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._entries: dict[tuple[Kind, str], list[Entry]] = {}
        self.manager = pluggy.PluginManager(hooks.PROJECT)
        self.manager.add_hookspecs(hooks)
        self._load(builtins, "advbench", importlib.metadata.distribution("advbench"))
        for entry_point in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda e: e.name):
            distribution = entry_point.dist
            assert distribution is not None, "entry points of installed distributions have one"
            try:
                plugin = entry_point.load()
            except Exception as error:
                self._report(entry_point.name, distribution.name, error)
            else:
                self._load(plugin, entry_point.name, distribution)

    def _load(self, plugin: object, name: str, distribution: importlib.metadata.Distribution) -> None:
        registrar = Registrar(distribution.name, distribution_version(distribution))
        try:
            if self.manager.is_registered(plugin):
                owner = self.manager.get_name(plugin)
                raise InputError(f"its module is already loaded as {owner}", remedy="ask an author to rename a module")
            # Two distributions may use the same name for their entry points.
            self.manager.register(plugin, name=f"{name} of {distribution.name}")
            self.manager.check_pending()
            others = [p for p in self.manager.get_plugins() if p is not plugin]
            self.manager.subset_hook_caller("advbench_register", others)(register=registrar)
        except Exception as error:
            self.manager.unregister(name=f"{name} of {distribution.name}")
            self._report(name, distribution.name, error)
        else:
            for entry in registrar.entries:
                self._entries.setdefault((entry.kind, entry.name), []).append(entry)

    def _report(self, plugin: str, distribution: str, error: Exception) -> None:
        reason = one_line(f"{type(error).__name__}: {error}", 500)
        self.problems.append(f"plugin {plugin!r} of {distribution} failed to load: {reason}")

    def entries(self, kind: Kind | None = None) -> Iterator[Entry]:
        """Registered names of one kind or all kinds, sorted by kind and name."""
        for key in sorted(self._entries, key=lambda k: (KINDS.index(k[0]), k[1])):
            if kind in (None, key[0]):
                yield self._entries[key][0]

    def duplicates(self) -> list[InputError]:
        """One error for each name that is declared twice."""
        return [self._duplicate(found) for found in self._entries.values() if len(found) > 1]

    @staticmethod
    def _duplicate(found: list[Entry]) -> InputError:
        owners = " and ".join(f"{e.distribution} {e.version} ({e.target})" for e in found)
        return InputError(
            f"{found[0].kind} name {found[0].name!r} is registered twice, by {owners}",
            remedy="uninstall one of them or ask its author to rename it",
        )

    def _claims(self, kind: Kind, name: str) -> list[Entry]:
        family, colon, member = name.partition(":")
        return self._entries.get((kind, family + colon), []) if member or not colon else []

    def knows(self, kind: Kind, name: str) -> bool:
        """True if the name is registered, or belongs to a registered family."""
        return bool(self._claims(kind, name))

    def kinds(self, name: str, among: Sequence[Kind] = KINDS) -> list[Kind]:
        """The kinds of what is registered under a name, or of what a name in a file stands for.

        Raises:
            InputError: nothing of these kinds has that name; or a file that cannot be imported.
        """
        name = files.kept_name(name)
        in_file = files.kind_of(name) if files.digest_of(name) else ""
        found = [kind for kind in among if kind == in_file or self.knows(kind, name)]
        if not found:
            files.check_path(name, "defense")
            raise unknown_name("name", name, {entry.shown for entry in self.entries() if entry.kind in among})
        return found

    def find(self, kind: Kind, name: str) -> Entry:
        """Find the entry of a name; for a member of a family, the family's entry under the member's name.

        Args:
            kind: kind of the name.
            name: registered name, or `path/to/my.py:NAME` or `file:DIGEST:NAME` for an object in a file.

        Raises:
            InputError: the name is unknown or declared twice, or a file cannot be read.
        """
        name = files.kept_name(name)
        if digest := files.digest_of(name):
            attribute = name.rpartition(":")[2]
            target = f"{files.known(digest, attribute).shown()}:{attribute}"
            return Entry(kind, name, target, "", files.FILE, digest[:12])
        found = self._claims(kind, name)
        if not found:
            files.check_path(name, kind)
            raise unknown_name(
                kind,
                name,
                [entries[0].shown for (k, _), entries in self._entries.items() if k == kind],
                remedy="'advbench plugins' lists all names",
                note="; ".join(self.problems),
            )
        if len(found) > 1:
            raise self._duplicate(found)
        return dataclasses.replace(found[0], name=name)

    def load(self, kind: Kind, name: str) -> Any:
        """Import and return the class or function of a name.

        Raises:
            InputError: the name is unknown or declared twice, its target or file cannot be imported, or its family or
                file has no such member.
        """
        name = files.kept_name(name)
        entry = self.find(kind, name)
        if entry.distribution == files.FILE:
            return files.load(kind, name)
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
    """The registry of the installed plugins, built on first use."""
    return Registry()


def distribution_version(distribution: importlib.metadata.Distribution) -> str:
    """Version of a distribution; for an editable install, with a digest of its sources.

    The code of a release never changes; that of a checkout does, and results of older code must not be reused.
    """
    folder = _checkout(distribution)
    return distribution.version if folder is None else f"{distribution.version}+{_source_digest(folder)}"


def checkout_digest() -> str | None:
    """Digest of the sources of advbench that results depend on, for an editable install; None for a release.

    Complements `SCHEMA` and the versions of plugins: the code of a checkout may change between them.
    """
    folder = _checkout(importlib.metadata.distribution("advbench"))
    return None if folder is None else _source_digest(folder, RESULTS_DEPEND_ON)


def _checkout(distribution: importlib.metadata.Distribution) -> str | None:
    """Folder of an editable install; None for a release."""
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
