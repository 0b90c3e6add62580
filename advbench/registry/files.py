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
import inspect
import io
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import TYPE_CHECKING, Any, cast

from advbench.errors import AdvbenchError, InputError, one_line, out_of_memory, unknown_name
from advbench.keys import content_key

if TYPE_CHECKING:
    from importlib.abc import Loader

FILE = "file"  # stands for the distribution of what a file holds
IMPORT_SECONDS = 60  # that the import of a file may take
MOST_FILES, MOST_BYTES = 500, 2**22  # of a file with all that it imports beside it
PREFIX = "advbench_file_"
PATH = re.compile(r"(?P<path>.+\.py):(?P<name>[^\W\d]\w*)(@(?P<label>\w[\w.+-]*))?", re.ASCII)
KEPT = re.compile(r"file:(?P<digest>[0-9a-f]{64}):(?P<name>\w+)", re.ASCII)
_ODD = re.compile(r"(?P<path>.+\.(py|pt|pth|ckpt|safetensors|ipynb|pyc))(:[^@]*)?(@.*)?")
BASES = {"defense": "advbench.training.Defense", "attack": "advbench.attacks.Attack"}
BUILDER = "a function (channels, height, width, classes) that returns an nn.Module"


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


def check_odd(name: str, kind: str) -> None:
    """Refuse what looks like a file, or like a module, but names nothing in a file, with what to write.

    Raises:
        InputError: it does.
    """
    found = _ODD.fullmatch(name)
    expected = f"path/to/my.py:NAME, {_a(kind)} in a file"
    if found and not is_path(name):
        if found[2] == "py":
            got = f"{name!r}"
            there = _names_of(kind, Path(found["path"]))
            remedy = f"{found['path']} has {there}" if there else f"write {found['path']}:NAME"
            raise InputError(f"{kind} {name!r}", expected=expected, got=got, remedy=remedy)
        if found[2] in ("pt", "pth", "ckpt", "safetensors"):
            remedy = (
                f"weights need their net: --arch my.py:build --defense pretrained --set pretrained.weights="
                f"{found['path']}"
            )
            raise InputError(f"{kind} {name!r}", expected=expected, got="a file of weights", remedy=remedy)
        raise InputError(f"{kind} {name!r}", expected=expected, got=f"a .{found[2]} file")
    if "/" in name and os.path.isdir(name):
        raise InputError(f"{kind} {name!r}", expected=expected, got="a folder")
    module, colon, attribute = name.partition("@")[0].rpartition(":")
    if not colon:
        module, _, attribute = name.partition("@")[0].rpartition(".")
    path = Path(f"{module.replace('.', '/')}.py")
    if attribute.isidentifier() and path.is_file():
        raise InputError(f"{kind} {name!r}", expected=expected, got="a module", remedy=f"write {path}:{attribute}")


def _a(kind: str) -> str:
    return f"{'an' if kind[0] == 'a' else 'a'} {kind}"


def _names_of(kind: str, path: Path) -> str:
    """What a file may hold of a kind, for people, without running it; empty where it cannot be read."""
    with contextlib.suppress(InputError):
        sources = read(str(path))
        nodes = _parsed(sources.texts[sources.entry], str(path)).body
        kinds = (ast.FunctionDef, ast.ClassDef) if kind == "architecture" else (ast.ClassDef,)
        found = [node.name for node in nodes if isinstance(node, kinds) and not node.name.startswith("_")]
        return ", ".join(f"{path}:{name}" for name in found)
    return ""


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
    if not path.is_file():
        got = "a folder" if path.is_dir() else "a device or pipe" if path.exists() else "none"
        raise InputError(f"file {shown}", expected="a Python file", got=got)
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"file {shown}", expected="a Python file", got=error.strerror or str(error)) from error


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


class _Package:
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
        """Part of the protocol of `sys.meta_path`."""
        if name not in self.paths and name not in self.packages:
            return None
        spec = ModuleSpec(name, cast("Loader", self), origin=self.filename(name), is_package=name in self.packages)
        spec.has_location = name in self.paths
        return spec

    def filename(self, name: str) -> str | None:
        """Where a module was read."""
        place = self.paths.get(name)
        return None if place is None else str(Path(self.sources.folder, place))

    def create_module(self, spec: ModuleSpec) -> None:
        """Part of the protocol of loaders: a plain module."""

    def exec_module(self, module: ModuleType) -> None:
        """Run a module's code."""
        if module.__name__ in self.paths:
            module.__dict__["__builtins__"] = self.builtins
            exec(self.get_code(module.__name__), module.__dict__)  # noqa: S102 - what the user named

    def get_code(self, name: str) -> CodeType:
        """A module's code."""
        raw = self.sources.texts[self.paths[name]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return compile(raw, self.filename(name) or name, "exec", dont_inherit=True)

    def get_source(self, name: str) -> str | None:
        """A module's text, for tracebacks."""
        return importlib.util.decode_source(self.sources.texts[self.paths[name]]) if name in self.paths else None


_packages: dict[str, _Package] = {}  # imported, by digest


def _imported_package(digest: str) -> _Package:
    """The package of a file, whose module is imported at first use.

    Raises:
        InputError: it raises, exits or hangs, or imports what lies beside it by other means than an import statement.
    """
    if digest in _packages:
        return _packages[digest]
    sources = known(digest)
    package = _Package(sources)
    sys.meta_path.insert(0, package)
    try:
        before = set(sys.modules)
        with running(digest, "is imported", IMPORT_SECONDS):
            importlib.import_module(package.entry)
        _check_all_read(package, before)
    except BaseException:
        sys.meta_path.remove(package)
        for name in [name for name in sys.modules if name.partition(".")[0] == package.name]:
            del sys.modules[name]
        raise
    _packages[digest] = package
    return package


def _check_all_read(package: _Package, before: set[str]) -> None:
    """Refuse a file that imported modules from its folder which its digest does not cover."""
    for name in set(sys.modules) - before:
        top = name.partition(".")[0]
        path = getattr(sys.modules.get(name), "__file__", None)
        if top.startswith((PREFIX, "advbench")) or not path:
            continue
        if Path(path) in (Path(package.sources.folder, f"{top}.py"), Path(package.sources.folder, top, "__init__.py")):
            raise InputError(
                f"file {package.sources.shown()}",
                expected="what lies beside it to be imported by import statements, for it is part of its digest",
                got=f"{Path(path).name}, imported by other means",
                remedy=f"write: import {top}",
            )


class _TooLongError(BaseException):
    pass


class _ExitError(BaseException):
    pass


@contextlib.contextmanager
def running(digest: str, when: str, seconds: float = IMPORT_SECONDS) -> Iterator[None]:
    """Run code of a file in this process: what it raises, prints or does in place of returning is told in one line.

    Args:
        digest: of the file.
        when: what it does, for the error, as "is imported".
        seconds: that it may take.

    Raises:
        InputError: it raised, exited, or took longer.
    """
    sources, printed = known(digest), io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), _limited(seconds), _no_exit():
            yield
    except (KeyboardInterrupt, AdvbenchError):
        raise
    except _TooLongError as error:
        raise _failed(sources, error, f"does not end within {seconds:g} s when it {when}") from None
    except (SystemExit, _ExitError) as error:
        raise _failed(sources, error, f"exits when it {when}") from None
    except Exception as error:
        if out_of_memory(error):
            raise
        raise _failed(sources, error, f"{type(error).__name__} when it {when}: {error}") from error
    finally:
        lines = printed.getvalue().splitlines()
        if lines:
            more = f" and {len(lines) - 1} more lines" if lines[1:] else ""
            message = f"file {sources.shown()} prints when it {when}: {one_line(lines[0], 200)!r}{more}"
            warnings.warn(message, stacklevel=4)


def _failed(sources: Sources, error: BaseException, what: str) -> InputError:
    """The error of a file, at the last of its lines that was running."""
    folder = _packages[sources.digest].sources.folder if sources.digest in _packages else sources.folder
    names = {str(Path(folder, place)): place for place in sources.texts}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in names]
    place, line = (names[frames[-1].filename], frames[-1].lineno) if frames else (sources.entry, None)
    return InputError(f"file {sources.shown(place)}{'' if line is None else f', line {line}'}: {what}")


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise after so long, where this thread can be interrupted."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise _TooLongError

    handler, rest = signal.signal(signal.SIGALRM, stop), signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *rest)
        signal.signal(signal.SIGALRM, handler)


@contextlib.contextmanager
def _no_exit() -> Iterator[None]:
    """Make `os._exit`, which no handler sees, an exception."""

    def leave(code: int) -> None:
        raise _ExitError

    before, os._exit = os._exit, leave  # type: ignore[assignment]
    try:
        yield
    finally:
        os._exit = before


def load(kind: str, name: str) -> Any:
    """Import a file and return what a name of the form `file:DIGEST:NAME` stands for.

    Raises:
        InputError: the file cannot be imported, has no such name, or it is not of the kind.
    """
    found = KEPT.fullmatch(name)
    assert found is not None, "names of files are made here"
    digest, attribute = found["digest"], found["name"]
    package = _imported_package(digest)
    module = sys.modules[package.entry]
    made, sources = vars(module).get(attribute), known(digest)
    if made is None:
        fitting = [each for each, value in vars(module).items() if _fits(kind, value, module) and each[0] != "_"]
        if fitting:
            raise unknown_name(f"{kind} in {sources.shown()}", attribute, fitting)
        due = f"a subclass of {BASES[kind]}" if kind in BASES else BUILDER
        expected = f"{_a(kind)} named {attribute}: {due}"
        raise InputError(f"file {sources.shown()}", expected=expected, got="none in it")
    _check_kind(kind, made, sources, attribute)
    return made


def kind_of(name: str) -> str:
    """The kind of what a name of the form `file:DIGEST:NAME` stands for: a defense, an attack, else an architecture.

    Raises:
        InputError: the file cannot be imported.
    """
    digest = digest_of(name) or ""
    made = vars(sys.modules[_imported_package(digest).entry]).get(name.rpartition(":")[2])
    for kind in BASES:
        base = _base(kind)
        if base is not None and isinstance(made, type) and issubclass(made, base):
            return kind
    return "architecture" if callable(made) else "defense"


def _fits(kind: str, value: object, module: ModuleType) -> bool:
    if getattr(value, "__module__", None) != module.__name__:
        return False
    base = _base(kind)
    if base or kind in BASES:
        return isinstance(value, type) and base is not None and issubclass(value, base)
    return inspect.isfunction(value) or (isinstance(value, type) and hasattr(value, "forward"))


def _base(kind: str) -> type | None:
    """The class that a plugin of a kind inherits from; None of a net, and where nobody imported it yet."""
    module, _, name = BASES.get(kind, "").rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    return found if isinstance(found, type) else None


def _check_kind(kind: str, made: Any, sources: Sources, name: str) -> None:
    """Refuse what is not of a kind, with file and line.

    Raises:
        InputError: it is not.
    """
    where = f"file {sources.shown()}{_line(sources, name)}: {name}"
    if kind in BASES:
        base = _base(kind)
        if base is None or not isinstance(made, type) or not issubclass(made, base):
            got = f"a class of {', '.join(each.__name__ for each in made.__bases__)}" if isinstance(made, type) else ""
            net = isinstance(made, type) and hasattr(made, "forward")
            remedy = f"a net is named by --arch {sources.shown()}:{name}" if net else ""
            expected = f"a subclass of {BASES[kind]}"
            raise InputError(where, expected=expected, got=got or f"a {type(made).__name__}", remedy=remedy)
        lacking = sorted(getattr(made, "__abstractmethods__", ()))
        if lacking:
            raise InputError(where, expected=f"{_a(kind)} with the method {lacking[0]}", got="none")
    elif kind == "architecture":
        if not callable(made):
            raise InputError(where, expected=BUILDER, got=f"a {type(made).__name__}")
        try:
            inspect.signature(made).bind(1, 8, 8, 10)
        except (TypeError, ValueError) as error:
            got = f"{inspect.signature(made)}" if isinstance(error, TypeError) else str(error)
            raise InputError(where, expected=BUILDER, got=got) from error


def _line(sources: Sources, name: str) -> str:
    for node in _parsed(sources.texts[sources.entry], sources.entry).body:
        if getattr(node, "name", None) == name:
            return f", line {getattr(node, 'lineno', 0)}"
    return ""


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
