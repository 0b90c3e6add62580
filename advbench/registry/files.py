"""Plugins and nets in the user's files, `path/to/my.py:Name`, identified by the digest of their sources, not by path.

A file is read once, together with the modules in its folder that it imports; exactly this content is imported and run.
Its modules have unique names in the process, so files of the same name do not clash, nor do their helpers.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.abc import SourceLoader
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from advbench.errors import AdvbenchError, InputError, one_line, out_of_memory, unknown_name
from advbench.keys import content_key

FILE = "file"  # in place of the distribution of a plugin in a file
MOST_FILES, MOST_BYTES = 500, 2**22  # limits on a file with its imports from the same folder
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
    """A file and the modules in its folder that it imports.

    Attributes:
        entry: name of the file, such as `my.py`.
        texts: content of each file, by path relative to the file's folder.
        folder: folder of the files; for messages and `__file__`, not part of any key.
    """

    entry: str
    texts: Mapping[str, bytes]
    folder: str = field(default="", compare=False)

    def shown(self, place: str = "") -> str:
        """Path of one of the files for messages, by default the entry file."""
        path = os.path.join(self.folder, place or self.entry)
        near = os.path.relpath(path)
        return path if near.startswith("..") else near

    @property
    def digest(self) -> str:
        """SHA-256 of the file, or, if it imports others, of their names and of all digests."""
        found = {name: hashlib.sha256(raw).hexdigest() for name, raw in self.texts.items()}
        return found[self.entry] if len(found) == 1 else content_key({"": found.pop(self.entry), **found})


_known: dict[str, Sources] = {}  # by digest
_offered: dict[str, Sources] = {}  # files of boards, by digest, which are not run unless the user names them


def know(sources: Sources) -> str:
    """Register sources for names of the form `file:DIGEST:NAME`; return the digest."""
    digest = sources.digest
    _known[digest] = sources
    return digest


def offer(sources: Sources) -> None:
    """Register the place of a board's file for messages; it stays unknown, and so is not run."""
    _offered[sources.digest] = sources


def known(digest: str, name: str = "") -> Sources:
    """Return the sources of a digest.

    Args:
        digest: the digest.
        name: name in the file, for the message.

    Raises:
        InputError: the digest is unknown to this process.
    """
    if digest in _known:
        return _known[digest]
    if digest not in _offered:
        remedy = "put the board's folder `files` next to its spec.toml"
        what, expected = f"file with SHA-256 {digest[:12]}", "a file given as path/to/my.py:Name"
        raise InputError(what, expected=expected, got="a file stored in a board", remedy=remedy)
    shown, name = _offered[digest].shown(), name or "NAME"
    raise InputError(
        f"{name} is in the board's file {shown}, which is not run unasked",
        remedy=f"read it and, if you trust it, add --run-files, or write {shown}:{name} in place of its label",
    )


def all_known() -> tuple[Sources, ...]:
    """All sources that this process has read."""
    return tuple(_known.values())


def is_path(name: object) -> bool:
    """True if a name refers to a file: `path/to/my.py:Name`, possibly with `@label`."""
    return isinstance(name, str) and PATH.fullmatch(name) is not None


def kept_name(name: str) -> str:
    """Convert `path/to/my.py:NAME` to `file:DIGEST:NAME`; the file is read but not run. Other names are unchanged.

    Raises:
        InputError: the file cannot be read, is not Python, or does not define the name.
    """
    found = PATH.fullmatch(name)
    if found is None:
        return name
    sources = read(found["path"])
    return f"{FILE}:{know(sources)}:{found['name']}"


def check_path(name: str, kind: str) -> None:
    """Refuse the path of a file without `:NAME`, and suggest the correct form.

    Raises:
        InputError: the name is missing.
    """
    found = _NAMELESS.fullmatch(name)
    if found is None:
        return
    remedy = f"write {found['path']}:NAME"
    if found[2] != "py":
        remedy = (
            f"a net with weights is --arch my.py:build --defense pretrained --set pretrained.weights={found['path']}"
        )
    raise InputError(f"{kind} {name!r}", expected="path/to/my.py:NAME", got="no :NAME", remedy=remedy)


def strings(value: Any) -> Iterator[str]:
    """Iterate over all strings in nested settings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from strings(each)


def renamed(value: Any, rename: Callable[[str], str]) -> Any:
    """Nested settings with each string replaced by `rename`."""
    if isinstance(value, str):
        return rename(value)
    if isinstance(value, Mapping):
        return {name: renamed(each, rename) for name, each in value.items()}
    return [renamed(each, rename) for each in value] if isinstance(value, list | tuple) else value


# Reading


def read(path: str) -> Sources:
    """Read a file and the modules in its folder that its import statements name; nothing is run.

    Modules of the standard library and of advbench are never taken from the folder.

    Raises:
        InputError: a file cannot be read, is not Python, or imports too many others.
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
                expected=f"at most {MOST_FILES} files of {MOST_BYTES >> 20} MiB with its imports from the same folder",
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
    """Refuse anything but an ordinary file; opening a pipe would block.

    Raises:
        InputError: it is not an ordinary file.
    """
    if not os.path.isfile(path):
        if os.path.exists(path):
            got = "a folder" if os.path.isdir(path) else "a device or pipe"
            raise InputError(f"file {shown}", expected=expected, got=got)
        folder, name = os.path.split(os.path.abspath(path))
        if not os.path.isdir(folder):
            raise InputError(f"file {shown}", expected=expected, got=f"no folder {folder}")
        alike = [each for each in os.listdir(folder) if os.path.splitext(each)[1] == os.path.splitext(name)[1]]
        near = difflib.get_close_matches(name, alike, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else ""
        raise InputError(f"file {shown}", expected=expected, got=f"no such file in {folder}", remedy=remedy)


def _parsed(raw: bytes, shown: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as invalid escapes
            return ast.parse(raw)
    except SyntaxError as error:
        where = "" if error.lineno is None else f", line {error.lineno}"
        raise InputError(f"file {shown}{where}", expected="Python", got=f"a syntax error ({error.msg})") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise InputError(
            f"file {shown}", expected="Python", got=one_line(str(error) or type(error).__name__)
        ) from error


def _imported(tree: ast.Module, package: Sequence[str]) -> Iterator[list[str]]:
    """Dotted names, as lists of parts, that a module of a package imports or may import from."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = list(package[: len(package) - node.level + 1]) if node.level else []
            start = [*above, *(node.module.split(".") if node.module else [])]
            yield from ([*start, alias.name] for alias in node.names)


def _beside(folder: Path, names: Sequence[str]) -> list[Path]:
    """Files of an import from a folder: a module, or a whole package; none if it is elsewhere."""
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
    """An installed package of that name, which takes precedence over a folder without `__init__.py`."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return spec if spec is not None and spec.origin is not None else None


# Importing


class _Package(SourceLoader):
    """Finder and loader of the modules of one file, named `advbench_file_DIGEST.NAME`, from the content read."""

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
        """Name of the entry file's module."""
        return self._module(self.sources.entry)

    def _module(self, place: str) -> str:
        *folders, name = Path(place).with_suffix("").parts
        parts = folders if name == "__init__" and folders else [*folders, name.replace(".", "_")]
        return ".".join([self.name, *parts])

    def _import(
        self, name: str, of: Any = None, local: Any = None, fromlist: Sequence[str] | None = (), level: int = 0
    ) -> ModuleType:
        """Replacement for `import` that finds the modules in the file's folder."""
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
        """Part of the protocol of loaders: path of a module."""
        return str(Path(self.sources.folder, self.paths[name]))

    def get_data(self, path: str | bytes) -> bytes:
        """Part of the protocol of loaders: source of a module as read."""
        return self.sources.texts[Path(str(path)).relative_to(self.sources.folder).as_posix()]

    def exec_module(self, module: ModuleType) -> None:
        """Part of the protocol of loaders: run a module's code, if any."""
        if module.__name__ in self.paths:
            module.__dict__["__builtins__"] = self.builtins
            super().exec_module(module)


_packages: dict[str, _Package] = {}  # imported packages by digest


def _imported_package(digest: str) -> _Package:
    """Return the package of a file; its module is imported on first use.

    Raises:
        InputError: the import raises or exits.
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
    """Context for code that may be of a file in this process; a file's prints go to standard error.

    Args:
        name: name of a plugin or net; without the form `file:DIGEST:NAME`, nothing is caught.
        when: action of the file for the error, such as "is imported".

    Raises:
        InputError: the code raised or exited; the message has the last executed line of the file.
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
    places = [place for place, _ in _own_frames(error, [sources])]
    return InputError(f"{places[-1] if places else f'file {sources.shown()}'}: {what}")


def place_of(error: BaseException) -> str:
    """Innermost line of a user's file in the traceback of an error, such as `file my.py, line 10, in fit`.

    Empty if no file was involved, or if the file called code of advbench in which the error occurred.
    """
    frames = _own_frames(error, [package.sources for package in _packages.values()], stop=Path(__file__).parents[1])
    return ", in ".join(frames[-1]) if frames else ""


def _own_frames(error: BaseException, made_of: Iterable[Sources], stop: Path | None = None) -> list[tuple[str, str]]:
    """Lines of the files in a traceback and their functions, outermost first; none if code below `stop` follows."""
    names = {str(Path(one.folder, place)): one.shown(place) for one in made_of for place in one.texts}
    found: list[tuple[str, str]] = []
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename in names:
            found.append((f"file {names[frame.filename]}, line {frame.lineno}", frame.name))
        elif stop is not None and Path(frame.filename).is_relative_to(stop):
            found.clear()
    return found


def calling_place() -> str:
    """Line of a user's file that called the current code, such as `file my.py, line 10: `; empty for none."""
    names = {
        str(Path(package.sources.folder, place)): package.sources.shown(place)
        for package in _packages.values()
        for place in package.sources.texts
    }
    lines = ((frame.f_code.co_filename, line) for frame, line in traceback.walk_stack(None))
    return next((f"file {names[path]}, line {line}: " for path, line in lines if path in names), "")


def place_of_method(cls: type, method: str) -> str:
    """Name of a method for messages, such as `file my.py, line 10, Mine.noise`, or `Mine.noise` outside of files."""
    owner = next((each for each in cls.__mro__ if method in vars(each)), cls)
    name, kept = f"{cls.__name__}.{method}", KEPT.fullmatch(origin(owner) or "")
    if kept is None:
        return name
    code = getattr(vars(owner).get(method), "__code__", None)
    line = f", line {code.co_firstlineno}" if code else ""
    return f"file {known(kept['digest']).shown()}{line}, {name}"


def load(kind: str, name: str) -> Any:
    """Import a file and return the object named `file:DIGEST:NAME`.

    Raises:
        InputError: the file cannot be imported, does not define the name, or it is of another kind.
    """
    found = KEPT.fullmatch(name)
    assert found is not None, "names of files are made here"
    attribute, shown = found["name"], known(found["digest"]).shown()
    values = vars(sys.modules[_imported_package(found["digest"]).entry])
    made = values.get(attribute)
    if made is None:
        own = {each: value for each, value in values.items() if getattr(value, "__module__", "") == values["__name__"]}
        fitting = [each for each, value in own.items() if _kind(value) == kind]
        raise unknown_name(f"{kind} in {shown}", attribute, fitting, remedy=f"define {DUE.get(kind, kind)}")
    if kind in DUE and _kind(made) != kind:
        got = (
            f"a class of {made.__mro__[1].__name__}"
            if isinstance(made, type)
            else f"an object of type {type(made).__name__}"
        )
        remedy = f"for a net, use --arch {shown}:{attribute}" if _kind(made) == "architecture" else ""
        if hasattr(made, "forward"):
            remedy = f"for a net, define a function that returns it, and use --arch {shown}:build"
        raise InputError(f"file {shown}: {attribute}", expected=DUE[kind], got=got, remedy=remedy)
    return made


def kind_of(name: str) -> str:
    """Kind of the object named `file:DIGEST:NAME`: a defense, an attack, otherwise an architecture.

    Raises:
        InputError: the file cannot be imported.
    """
    digest = digest_of(name) or ""
    return _kind(vars(sys.modules[_imported_package(digest).entry]).get(name.rpartition(":")[2])) or "defense"


def _kind(made: object) -> str:
    """Kind of a class by its methods, because the base classes are in higher layers; empty for none."""
    from advbench.registry.params import Configurable

    if isinstance(made, type) and issubclass(made, Configurable):
        return "defense" if hasattr(made, "fit") else "attack"
    return "architecture" if callable(made) else ""


def origin(made: object) -> str | None:
    """Name `file:DIGEST:NAME` of a class or function defined in a file; None for others."""
    top = str(getattr(made, "__module__", "")).partition(".")[0]
    for digest, package in _packages.items():
        if package.name == top:
            return f"{FILE}:{digest}:{getattr(made, '__name__', '')}"
    return None


def digest_of(name: str) -> str | None:
    """Digest in a name of the form `file:DIGEST:NAME`; None for other names."""
    found = KEPT.fullmatch(name)
    return None if found is None else found["digest"]
