"""What a run or board keeps of the files that its plugins and nets are in: their sources, and what keys hold of them.

With that, keys are checked and results reported without the files: none of them is imported.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
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

FOLDER = "files"
INDEX = f"{FOLDER}/index.json"
LARGEST = 2**26  # bytes of all that a board keeps of files
MOST = 100_000  # files that it keeps
Digest = Annotated[str, pydantic.Field(pattern=r"^[0-9a-f]{64}$")]
Place = Annotated[str, pydantic.Field(pattern=r"^[\w-][\w.-]*(/[\w-][\w.-]*)*\.py$", max_length=300)]


class _Part(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class KeptChoice(_Part):
    """A plugin of a file, or an attack that is made of one, as a run used it."""

    kind: Literal["defense", "attack"]
    component: Component
    passes: float | None = None
    init: str | None = None  # label of the defense that it starts from, or that is its source
    traits: tuple[str, ...] = ()
    net: Component | None = None  # one that it brings with it
    paper: Paper | None = None


class Kept(_Part):
    """The content of `files/index.json`.

    Attributes:
        choices: plugins by label, if they or their nets are in files.
        net: the run's net, if it is in a file.
        parameters: number of weights of nets in files, by name.
        sources: SHA-256 of each file by its path, by the digest of all of them; the file itself is `entry`.
    """

    class Source(_Part):
        """A file with what it imports beside it."""

        entry: Place
        sha256: dict[Place, Digest]

    choices: dict[str, KeptChoice] = {}
    net: Component | None = None
    parameters: dict[str, int] = {}
    sources: dict[Digest, Source] = {}

    def components(self) -> list[Component]:
        """All that is from files."""
        found = [self.net, *(part for each in self.choices.values() for part in (each.component, each.net))]
        return [each for each in found if each is not None]


def digests(component: Component) -> set[str]:
    """The digests of the files that a plugin or net is from, or made of."""
    found = {found["digest"] for found in map(files.KEPT.fullmatch, component.parts or {}) if found}
    return found | ({component.file} if component.file else set())


def content(kept: Kept, sources: Mapping[str, Sources]) -> dict[str, bytes]:
    """The files to keep, by path: `files/index.json`, and each source as `files/DIGEST/NAME`; none where none is."""
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
    """What `content` made, which is not trusted: parsed and checked against its digests, never imported.

    Args:
        found: bytes by path, of `files/` alone.
        what: the board, archive or folder, for errors.

    Raises:
        InputError: it is damaged, too large, or its digests are others.
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
        raise InputError(f"{INDEX} of {what}", expected="what a run with files wrote", got=got) from error
    sources: dict[str, Sources] = {}
    for digest, listed in kept.sources.items():
        places = {name: f"{FOLDER}/{digest}/{name}" for name in listed.sha256}
        if listed.entry not in places or any(place not in found for place in places.values()):
            raise InputError(f"{FOLDER} of {what}", expected=f"the files of {digest[:12]}", got="some are missing")
        one = Sources(listed.entry, dict(sorted((name, found[place]) for name, place in places.items())), "")
        if one.digest != digest or _listed(one) != listed:
            expected = f"what index.json lists under {digest[:12]}, by SHA-256"
            raise InputError(f"file {listed.entry} of {what}", expected=expected, got="other content")
        sources[digest] = one
    known = {INDEX, *(f"{FOLDER}/{digest}/{name}" for digest, one in sources.items() for name in one.texts)}
    surplus = sorted(found.keys() - known)
    lacking = sorted(set().union(*map(digests, kept.components()), set()) - sources.keys())
    if surplus or lacking:
        got = surplus[0] if surplus else f"none of {lacking[0][:12]}"
        raise InputError(f"{FOLDER} of {what}", expected="the files that index.json lists", got=got)
    return kept, sources


def is_place(name: str) -> bool:
    """Whether a name can be that of a file that is kept: nothing above, absolute or hidden."""
    pure = PurePosixPath(name)
    ordinary = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)*", name, re.ASCII) is not None
    return ordinary and pure.parts[0] == FOLDER and pure.suffix in (".py", ".json")


def read_folder(folder: Path) -> dict[str, bytes]:
    """The bytes of all ordinary files of a folder's `files/`, by path; links are not followed."""
    root = folder / FOLDER
    if root.is_symlink() or not root.is_dir():
        return {}
    paths = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.is_symlink()]
    places = {path.relative_to(folder).as_posix(): path for path in paths}
    if sum(path.stat().st_size for path in paths) > LARGEST:
        raise InputError(f"folder {root}", expected=f"at most {LARGEST >> 20} MiB", got="more")
    return {place: path.read_bytes() for place, path in places.items() if is_place(place)}


def read_kept(folder: Path) -> tuple[Kept, dict[str, Sources]]:
    """What a run's folder keeps of files.

    Raises:
        InputError: it is damaged.
    """
    return parse(read_folder(folder), str(folder))


def names_in(value: Any) -> list[str]:
    """The names of files in settings, as `path/to/my.py:NAME`."""
    return list(filter(files.is_path, files.strings(value)))


def in_board(spec: RunSpec, kept: Kept, what: str) -> RunSpec:
    """A spec as a board has it, which knows of no paths: names of files are `file:DIGEST:NAME`.

    Args:
        spec: a run's or a board's.
        kept: what is kept of its files.
        what: the spec, for the error.

    Raises:
        InputError: nothing is kept of one of its files.
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
            expected="names of files that are kept beside it, of which none is imported",
            got=f"{paths[0]}, a path",
            remedy=f"copy the folder {FOLDER} of the run's --out folder, too",
        )
    return spec.model_copy(update={"files": table, "set": settings}) if settings != spec.set or table else spec


def _as_used(label: str, params: Mapping[str, Any], kept: Kept) -> dict[str, Any]:
    """Settings of a plugin in which those that name files are the hyperparameters that they became."""
    if label not in kept.choices:
        return dict(params)
    one = kept.choices[label]
    used = {**({"arch": one.net.loaded_as} if one.net else {}), **(one.component.params or {})}
    return {name: used.get(name, value) if names_in(value) else value for name, value in params.items()}
