"""Plugins and nets of a run or board that advbench does not contain: their parts of keys, and the sources of files.

They allow checks of keys and reports without importing a file or installing another distribution.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
import pydantic_core

from advbench.errors import InputError
from advbench.grid.inputs import Component
from advbench.registry import files
from advbench.registry.files import Sources
from advbench.registry.params import Paper

if TYPE_CHECKING:
    from advbench.grid.spec import RunSpec

CORE = "advbench"  # the distribution
FOLDER = "files"
INDEX = f"{FOLDER}/index.json"
LARGEST = 2**26  # bytes; limit on all stored files
MOST = 100_000  # limit on the number of stored files
Digest = Annotated[str, pydantic.Field(pattern=r"^[0-9a-f]{64}$")]
Place = Annotated[str, pydantic.Field(pattern=r"^[\w-][\w.-]*(/[\w-][\w.-]*)*\.py$", max_length=300)]


class _Part(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class KeptChoice(_Part):
    """A plugin in a file or of another distribution, or one that uses such, as used in a run."""

    kind: Literal["defense", "attack"]
    component: Component
    passes: float | None = None
    init: str | None = None  # label of the defense that provides its initial weights or is its source
    traits: tuple[str, ...] = ()
    net: Component | None = None  # its own net, if any
    paper: Paper | None = None


class Kept(_Part):
    """The content of `files/index.json`.

    Attributes:
        choices: plugins by label, if advbench does not contain them, a part of them or their net.
        net: the run's net, if advbench does not contain it.
        parameters: number of weights of such nets, by name.
        sources: SHA-256 of each file by path, by digest of the whole; `entry` is the main file.
    """

    class Source(_Part):
        """A file with its imports from the same folder."""

        entry: Place
        sha256: dict[Place, Digest]

    choices: dict[str, KeptChoice] = {}
    net: Component | None = None
    parameters: dict[str, int] = {}
    sources: dict[Digest, Source] = {}

    def components(self) -> list[Component]:
        """All components, those of advbench included."""
        found = [self.net, *(part for each in self.choices.values() for part in (each.component, each.net))]
        return [each for each in found if each is not None]

    def in_files(self) -> Kept:
        """The part that is in files."""
        choices = {
            label: each
            for label, each in self.choices.items()
            if digests(each.component) or (each.net is not None and each.net.file)
        }
        net = self.net if self.net is not None and self.net.file else None
        return self.model_copy(update={"choices": choices, "net": net})


def is_third_party(component: Component) -> bool:
    """True if a plugin or net needs a distribution other than advbench, for itself, a part or a wrapped library."""
    return component.distribution not in (CORE, files.FILE) or bool(component.built_on)


def digests(component: Component) -> set[str]:
    """Digests of the files of a plugin or net and of its components."""
    found = {found["digest"] for found in map(files.KEPT.fullmatch, component.parts or {}) if found}
    return found | ({component.file} if component.file else set())


def content(kept: Kept, sources: Mapping[str, Sources]) -> dict[str, bytes]:
    """Files to store, by path: `files/index.json` and each source as `files/DIGEST/NAME`; empty if there are none."""
    if not kept.components():
        return {}
    used = sorted(set().union(*map(digests, kept.components())))
    listed = {digest: _listed(sources[digest]) for digest in used}
    index = kept.model_copy(update={"sources": listed}).model_dump_json(indent=1, exclude_defaults=True)
    texts = {f"{FOLDER}/{digest}/{name}": raw for digest in used for name, raw in sources[digest].texts.items()}
    return {INDEX: f"{index}\n".encode(), **texts}


def _listed(sources: Sources) -> Kept.Source:
    return Kept.Source(
        entry=sources.entry, sha256={name: hashlib.sha256(raw).hexdigest() for name, raw in sources.texts.items()}
    )


def parse(found: Mapping[str, bytes], what: str) -> tuple[Kept, dict[str, Sources]]:
    """Parse the untrusted result of `content` and verify its digests; nothing is imported.

    Args:
        found: content of `files/` by path.
        what: description of the board, archive or folder, for errors.

    Raises:
        InputError: the content is damaged or too large, or digests do not match.
    """
    if not found:
        return Kept(), {}
    if len(found) > MOST or sum(map(len, found.values())) > LARGEST:
        raise InputError(f"{FOLDER} of {what}", expected=f"at most {MOST:,} files of {LARGEST >> 20} MiB", got="more")
    if INDEX not in found:
        raise InputError(f"{FOLDER} of {what}", expected="a file index.json in it", got="none")
    try:
        kept = Kept.model_validate(pydantic_core.from_json(found[INDEX], allow_inf_nan=False))
    except ValueError as error:
        first = error.errors()[0] if isinstance(error, pydantic.ValidationError) else {"loc": (), "msg": str(error)}
        got = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
        raise InputError(f"{INDEX} of {what}", expected="the index of a run with files", got=got) from error
    sources: dict[str, Sources] = {}
    for digest, listed in kept.sources.items():
        texts = {name: found[place] for name in listed.sha256 if (place := f"{FOLDER}/{digest}/{name}") in found}
        one = Sources(listed.entry, dict(sorted(texts.items())))
        if listed.entry not in texts or one.digest != digest or _listed(one) != listed:
            expected = f"the SHA-256 in index.json under {digest[:12]}"
            raise InputError(f"file {listed.entry} of {what}", expected=expected, got="other content")
        sources[digest] = one
    lacking = set().union(*map(digests, kept.components())) - sources.keys()
    surplus = found.keys() - {
        INDEX,
        *(f"{FOLDER}/{digest}/{name}" for digest in sources for name in sources[digest].texts),
    }
    if surplus or lacking:
        got = min(surplus, default="") or f"none of {min(lacking)[:12]}"
        raise InputError(f"{FOLDER} of {what}", expected="the files that index.json lists", got=got)
    return kept, sources


def is_place(name: str) -> bool:
    """True if a name is valid for a stored file: not absolute, hidden or outside the folder."""
    pure = PurePosixPath(name)
    ordinary = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)*", name, re.ASCII) is not None
    return ordinary and pure.parts[0] == FOLDER and pure.suffix in (".py", ".json")


def read_folder(folder: Path) -> dict[str, bytes]:
    """Read all ordinary files in a folder's `files/`, by path; links are not followed."""
    root = folder / FOLDER
    if root.is_symlink() or not root.is_dir():
        return {}
    paths = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink()]
    places = {path.relative_to(folder).as_posix(): path for path in paths}
    if sum(path.stat().st_size for path in paths) > LARGEST:
        raise InputError(f"folder {root}", expected=f"at most {LARGEST >> 20} MiB", got="more")
    return {place: path.read_bytes() for place, path in places.items() if is_place(place)}


def read_kept(folder: Path) -> tuple[Kept, dict[str, Sources]]:
    """Read the stored files of a run's folder.

    Raises:
        InputError: the content is damaged.
    """
    return parse(read_folder(folder), str(folder))


def placed(sources: Mapping[str, Sources], folder: Path) -> list[Sources]:
    """The stored files of a folder, with their paths."""
    return [replace(each, folder=str(folder.absolute() / FOLDER / digest)) for digest, each in sources.items()]


def names_in(value: Any) -> list[str]:
    """Names of files in settings, in the form `path/to/my.py:NAME`."""
    return list(filter(files.is_path, files.strings(value)))


def in_board(spec: RunSpec, kept: Kept, what: str) -> RunSpec:
    """The spec of a board, without paths: names of files become `file:DIGEST:NAME`.

    Args:
        spec: spec of a run or a board.
        kept: its stored files.
        what: description of the spec, for errors.

    Raises:
        InputError: one of its files is not stored.
    """
    known = {label: each.component for label, each in kept.choices.items()}
    if kept.net:
        known[spec.architecture] = kept.net
    table = {
        label: known[label].loaded_as if files.is_path(name) and label in known else name
        for label, name in spec.files.items()
    }
    settings = {label: _as_used(label, params, kept) for label, params in spec.set.items()}
    paths = names_in(table) + names_in(settings)
    if paths:
        raise InputError(
            what,
            expected="names of stored files",
            got=f"{paths[0]}, a path",
            remedy=f"also copy the folder {FOLDER} of the run's --out folder",
        )
    return spec.model_copy(update={"files": table, "set": settings}) if settings != spec.set or table else spec


def _as_used(label: str, params: Mapping[str, Any], kept: Kept) -> dict[str, Any]:
    """Settings of a plugin with settings that name files replaced by the resolved hyperparameters."""
    if label not in kept.choices:
        return dict(params)
    one = kept.choices[label]
    used = {**({"arch": one.net.loaded_as} if one.net else {}), **(one.component.params or {})}
    return {name: used.get(name, value) if names_in(value) else value for name, value in params.items()}
