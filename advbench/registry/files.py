"""Plugins and nets in files of one's own, as `path/to/my.py:Name`, known by the digest of their sources, not by path.

A file is read once, with the modules beside it that it imports; what is imported and run is what was read. Its modules
have names of their own in this process, so two files of one name do not clash, and neither do their helpers.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import hashlib
import importlib
import importlib.util
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.abc import SourceLoader
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from advbench.errors import AdvbenchError, InputError, one_line, out_of_memory, unknown_name
from advbench.keys import content_key

FILE = "file"  # stands for the distribution of what a file holds
MOST_FILES, MOST_BYTES = 500, 2**22  # of a file with all that it imports beside it
PREFIX = "advbench_file_"
PATH = re.compile(r"(?P<path>.+\.py):(?P<name>[^\W\d]\w*)(@(?P<label>\w[\w.+-]*))?", re.ASCII)
KEPT = re.compile(r"file:(?P<digest>[0-9a-f]{64}):(?P<name>\w+)", re.ASCII)
_NAMELESS = re.compile(r"(?P<path>.+\.(py|pt|pth|ckpt|safetensors))(:[^@]*)?(@.*)?")
DUE = {
    "defense": "a subclass of advbench.training.Defense",
    "attack": "a subclass of advbench.attacks.Attack",
    "architecture": "a function (channels, height, width, classes) that returns an nn.Module",
}


@dataclass(frozen=True)
class Sources:
    """A file and the modules beside it that it imports.

    Attributes:
        entry: name of the file, as `my.py`.
        texts: content of each file, by path relative to the file's folder.
        folder: where they were read; for messages and `__file__`, part of no key.
    """

    entry: str
    texts: Mapping[str, bytes]
    folder: str = field(default="", compare=False)

    def shown(self, place: str = "") -> str:
        """The path of one of the files for people; of the file itself by default."""
        path = os.path.join(self.folder, place or self.entry)
        near = os.path.relpath(path)
        return path if near.startswith("..") else near

    @property
    def digest(self) -> str:
        """SHA-256 of the file; of a file that imports others, of all their names and digests but the file's name."""
        found = {name: hashlib.sha256(raw).hexdigest() for name, raw in self.texts.items()}
        return found[self.entry] if len(found) == 1 else content_key({"": found.pop(self.entry), **found})


_known: dict[str, Sources] = {}  # by digest


def know(sources: Sources) -> str:
    """Let names of the form `file:DIGEST:NAME` stand for what these sources hold; returns the digest."""
    digest = sources.digest
    _known[digest] = sources
    return digest


def known(digest: str) -> Sources:
    """The sources of a digest.

    Raises:
        InputError: this process does not have them.
    """
    if digest not in _known:
        raise InputError(
            f"file with SHA-256 {digest[:12]}",
            expected="one that was named, as path/to/my.py:Name",
            got="one that a board keeps",
            remedy="'advbench leaderboard check BOARD --rerun N --run-files' runs the files of a board",
        )
    return _known[digest]


def all_known() -> tuple[Sources, ...]:
    """What this process has read."""
    return tuple(_known.values())


def is_path(name: object) -> bool:
    """Whether a name is that of something in a file, as `path/to/my.py:Name`, perhaps with `@label`."""
    return isinstance(name, str) and PATH.fullmatch(name) is not None


def kept_name(name: str) -> str:
    """`file:DIGEST:NAME` for a `path/to/my.py:NAME`, whose file is read but not run; other names as they are.

    Raises:
        InputError: the file cannot be read, is no Python, or has no such name.
    """
    found = PATH.fullmatch(name)
    if found is None:
        return name
    sources = read(found["path"])
    return f"{FILE}:{know(sources)}:{found['name']}"


def check_path(name: str, kind: str) -> None:
    """Refuse the path of a file that lacks the name of what is meant in it, with what to write.

    Raises:
        InputError: it does.
    """
    found = _NAMELESS.fullmatch(name)
    if found is None:
        return
    remedy = f"write {found['path']}:NAME"
    if found[2] != "py":
        remedy = (
            f"a net with weights is --arch my.py:build --defense pretrained --set pretrained.weights={found['path']}"
        )
    raise InputError(f"{kind} {name!r}", expected="path/to/my.py:NAME", got="no name in a file", remedy=remedy)


def strings(value: Any) -> Iterator[str]:
    """All strings in nested settings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from strings(each)


def renamed(value: Any, rename: Callable[[str], str]) -> Any:
    """Nested settings with another string in place of each."""
    if isinstance(value, str):
        return rename(value)
    if isinstance(value, Mapping):
        return {name: renamed(each, rename) for name, each in value.items()}
    return [renamed(each, rename) for each in value] if isinstance(value, list | tuple) else value


# Reading


def read(path: str) -> Sources:
    """A file and the modules beside it that it imports, by its import statements; nothing is run.

    Modules of the standard library and of advbench are never taken from beside the file.

    Raises:
        InputError: a file cannot be read, is no Python, or imports too many others.
    """
    entry = Path(os.path.expanduser(path)).absolute()
    texts: dict[str, bytes] = {}
    pending = [entry]
    while pending:
        one = pending.pop()
        place = one.relative_to(entry.parent).as_posix()
        if place in texts:
            continue
        shown = path if one == entry else str(one)
        texts[place] = _content(one, shown)
        if len(texts) > MOST_FILES or sum(map(len, texts.values())) > MOST_BYTES:
            raise InputError(
                f"file {path}",
                expected=f"at most {MOST_FILES} files of {MOST_BYTES >> 20} MiB with all that it imports beside it",
                got="more",
                remedy="move it into a folder of its own",
            )
        for names in _imported(_parsed(texts[place], shown), Path(place).parent.parts):
            pending += _beside(entry.parent, names)
    return Sources(entry.name, dict(sorted(texts.items())), str(entry.parent))


def _content(path: Path, shown: str) -> bytes:
    check_file(path, shown, "a Python file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"file {shown}", expected="a Python file", got=error.strerror or str(error)) from error


def check_file(path: str | Path, shown: str, expected: str = "a file") -> None:
    """Refuse what is no ordinary file, as a pipe, which would be waited for.

    Raises:
        InputError: it is none.
    """
    if not os.path.isfile(path):
        got = "a folder" if os.path.isdir(path) else "a device or pipe" if os.path.exists(path) else "none"
        raise InputError(f"file {shown}", expected=expected, got=got)


def _parsed(raw: bytes, shown: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as invalid escapes
            return ast.parse(raw)
    except SyntaxError as error:
        where = "" if error.lineno is None else f", line {error.lineno}"
        raise InputError(f"file {shown}{where}", expected="Python", got=f"a syntax error ({error.msg})") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise InputError(
            f"file {shown}", expected="Python", got=one_line(str(error) or type(error).__name__)
        ) from error


def _imported(tree: ast.Module, package: Sequence[str]) -> Iterator[list[str]]:
    """Dotted names, as parts, that a module of that package imports, and what it may import from them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = list(package[: len(package) - node.level + 1]) if node.level else []
            start = [*above, *(node.module.split(".") if node.module else [])]
            yield from ([*start, alias.name] for alias in node.names)


def _beside(folder: Path, names: Sequence[str]) -> list[Path]:
    """The files of an import from that folder: a module, or the whole of a package; none where it lies elsewhere."""
    top = names[0]
    if top in sys.stdlib_module_names or top == "advbench" or top.startswith("advbench_"):
        return []
    package = folder / top
    if (package / "__init__.py").is_file() or (package.is_dir() and _elsewhere(top) is None):
        found = (path for path in package.rglob("*.py") if path.is_file())
        return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    module = folder / f"{top}.py"
    return [module] if module.is_file() else []


def _elsewhere(name: str) -> ModuleSpec | None:
    """An installed package of that name, which goes before a folder without `__init__.py`."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return spec if spec is not None and spec.origin is not None else None


# Importing


class _Package(SourceLoader):
    """Finds and loads the modules of one file, as `advbench_file_DIGEST.NAME`, from what was read."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self.name = f"{PREFIX}{sources.digest[:16]}"
        self.paths = {self._module(place): place for place in sources.texts}
        self.packages = {self.name}
        for name in self.paths:
            parts = name.split(".")
            inner = len(parts) if Path(self.paths[name]).name == "__init__.py" else len(parts) - 1
            self.packages.update(".".join(parts[:count]) for count in range(1, inner + 1))
        self.tops = {name.split(".")[1] for name in (*self.paths, *self.packages) if "." in name}
        self.builtins = {**vars(builtins), "__import__": self._import}

    @property
    def entry(self) -> str:
        """Name of the file's module."""
        return self._module(self.sources.entry)

    def _module(self, place: str) -> str:
        *folders, name = Path(place).with_suffix("").parts
        parts = folders if name == "__init__" and folders else [*folders, name.replace(".", "_")]
        return ".".join([self.name, *parts])

    def _import(
        self, name: str, of: Any = None, local: Any = None, fromlist: Sequence[str] | None = (), level: int = 0
    ) -> ModuleType:
        """`import`, for which the file's own modules are those beside it."""
        top = name.partition(".")[0]
        if level or top not in self.tops:
            return builtins.__import__(name, of, local, fromlist or (), level)
        found = builtins.__import__(f"{self.name}.{name}", of, local, fromlist or (), 0)
        return found if fromlist else sys.modules[f"{self.name}.{top}"]

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Part of the protocol of finders."""
        if name not in self.paths and name not in self.packages:
            return None
        origin = self.get_filename(name) if name in self.paths else None
        spec = ModuleSpec(name, self, origin=origin, is_package=name in self.packages)
        spec.has_location = name in self.paths
        return spec

    def get_filename(self, name: str) -> str:
        """Part of the protocol of loaders: where a module was read."""
        return str(Path(self.sources.folder, self.paths[name]))

    def get_data(self, path: str | bytes) -> bytes:
        """Part of the protocol of loaders: a module's source as it was read."""
        return self.sources.texts[Path(str(path)).relative_to(self.sources.folder).as_posix()]

    def exec_module(self, module: ModuleType) -> None:
        """Part of the protocol of loaders: run a module's code; a folder without `__init__.py` has none."""
        if module.__name__ in self.paths:
            module.__dict__["__builtins__"] = self.builtins
            super().exec_module(module)


_packages: dict[str, _Package] = {}  # imported, by digest


def _imported_package(digest: str) -> _Package:
    """The package of a file, whose module is imported at first use.

    Raises:
        InputError: it raises or exits.
    """
    if digest in _packages:
        return _packages[digest]
    package = _Package(known(digest))
    sys.meta_path.insert(0, package)
    try:
        with running(f"{FILE}:{digest}:_", "is imported"):
            importlib.import_module(package.entry)
    except BaseException:
        sys.meta_path.remove(package)
        for name in [name for name in sys.modules if name.partition(".")[0] == package.name]:
            del sys.modules[name]
        raise
    _packages[digest] = package
    return package


@contextlib.contextmanager
def running(name: str, when: str) -> Iterator[None]:
    """Run code that may be of a file in this process; what a file prints goes to standard error.

    Args:
        name: of a plugin or net; where it is not of the form `file:DIGEST:NAME`, nothing is caught.
        when: what it does, for the error, as "is imported".

    Raises:
        InputError: it raised or exited; with the last line of the file that was running.
    """
    digest = digest_of(name)
    if digest is None:
        yield
        return
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (KeyboardInterrupt, AdvbenchError):
        raise
    except SystemExit as error:
        raise _failed(digest, error, f"exits when it {when}") from None
    except Exception as error:
        if out_of_memory(error):
            raise
        raise _failed(digest, error, f"{type(error).__name__} when it {when}: {error}") from error


def _failed(digest: str, error: BaseException, what: str) -> InputError:
    sources = _packages[digest].sources if digest in _packages else known(digest)
    names = {str(Path(sources.folder, place)): place for place in sources.texts}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in names]
    place, line = (names[frames[-1].filename], frames[-1].lineno) if frames else (sources.entry, None)
    return InputError(f"file {sources.shown(place)}{'' if line is None else f', line {line}'}: {what}")


def load(kind: str, name: str) -> Any:
    """Import a file and return what a name of the form `file:DIGEST:NAME` stands for.

    Raises:
        InputError: the file cannot be imported, has no such name, or it is not of the kind.
    """
    found = KEPT.fullmatch(name)
    assert found is not None, "names of files are made here"
    attribute, shown = found["name"], known(found["digest"]).shown()
    values = vars(sys.modules[_imported_package(found["digest"]).entry])
    made = values.get(attribute)
    if made is None:
        own = {each: value for each, value in values.items() if getattr(value, "__module__", "") == values["__name__"]}
        fitting = [each for each, value in own.items() if _kind(value) == kind]
        raise unknown_name(f"{kind} in {shown}", attribute, fitting, remedy=f"write there {DUE.get(kind, kind)}")
    if kind in DUE and _kind(made) != kind:
        got = f"a class of {made.__mro__[1].__name__}" if isinstance(made, type) else f"a {type(made).__name__}"
        remedy = f"a net is named by --arch {shown}:{attribute}" if hasattr(made, "forward") else ""
        raise InputError(f"file {shown}: {attribute}", expected=DUE[kind], got=got, remedy=remedy)
    return made


def kind_of(name: str) -> str:
    """The kind of what a name of the form `file:DIGEST:NAME` stands for: a defense, an attack, else an architecture.

    Raises:
        InputError: the file cannot be imported.
    """
    digest = digest_of(name) or ""
    return _kind(vars(sys.modules[_imported_package(digest).entry]).get(name.rpartition(":")[2])) or "defense"


def _kind(made: object) -> str:
    """A class's kind by its methods, as their base classes are in packages above; empty of what has none."""
    from advbench.registry.params import Configurable

    if isinstance(made, type) and issubclass(made, Configurable):
        return "defense" if hasattr(made, "fit") else "attack"
    return "architecture" if callable(made) else ""


def origin(made: object) -> str | None:
    """The `file:DIGEST:NAME` of a class or function that a file defines; None of others."""
    top = str(getattr(made, "__module__", "")).partition(".")[0]
    for digest, package in _packages.items():
        if package.name == top:
            return f"{FILE}:{digest}:{getattr(made, '__name__', '')}"
    return None


def digest_of(name: str) -> str | None:
    """The digest in a name of the form `file:DIGEST:NAME`; None of other names."""
    found = KEPT.fullmatch(name)
    return None if found is None else found["digest"]
