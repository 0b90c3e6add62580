"""One base class for every failure that a user can expect; anything else is a bug and keeps its traceback."""

import difflib
import re
from collections.abc import Iterable

LONGEST_WORD = 300  # characters of a name or value that a message shows
LONGEST_LINE = 2000


def printable(text: str) -> str:
    """Text in which all that a terminal would act on, line breaks included, is escaped as in a Python string."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def one_line(text: str, limit: int = LONGEST_LINE) -> str:
    """Any text as one printable line, in which long words, and the whole, are cut in the middle."""
    line = " ".join(printable(word) for word in _cut(text, 10 * limit).split())
    return _cut(re.sub(rf"\S{{{LONGEST_WORD + 1},}}", lambda word: _cut(word[0], LONGEST_WORD), line), limit)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - limit // 3 - 3]}...{text[-(limit // 3) :]}"


class AdvbenchError(Exception):
    """An expected failure, told in one line: what was wrong, what was expected, what was got, what to do.

    Args:
        problem: what was wrong, naming the thing.
        expected: what would have been right.
        got: what was there instead.
        remedy: what the reader can do now.
    """

    def __init__(self, problem: str, *, expected: str = "", got: object = None, remedy: str = "") -> None:
        parts = [problem]
        if expected:
            parts.append(f"expected {expected}" + ("" if got is None else f", got {got}"))
        elif got is not None:
            parts.append(f"got {got}")
        text = ": ".join(parts)
        if remedy:
            text += f"; {remedy}"
        super().__init__(one_line(text))

    def __reduce__(self) -> tuple[object, tuple[str]]:
        """Keep the composed line when the error travels between processes."""
        return type(self), (str(self),)


class InputError(AdvbenchError):
    """What the user gave cannot be used: a name, a value, a file, an image."""


class MissingExtraError(InputError):
    """A library is needed that one of advbench's extras installs.

    Args:
        needed_by: what needs it.
        library: its distribution.
        extra: the extra.
    """

    def __init__(self, needed_by: str, library: str = "", extra: str = "") -> None:
        if not library:  # composed already, on its way between processes
            super().__init__(needed_by)
            return
        super().__init__(
            f"{needed_by} needs {library}, which is not installed", remedy=f"pip install 'advbench[{extra}]'"
        )


class PluginError(AdvbenchError):
    """A plugin broke its contract: a false claim, a wrong shape, a number that is not finite."""


class NoGradientError(PluginError):
    """An attack needs gradients, and the classifier lets none through to the images."""


class ModelWarning(UserWarning):
    """A model does something that makes what an evaluation or an attack says of it doubtful."""


class OutOfMemoryError(PluginError):
    """A task does not fit into a device's memory, in however small parts."""


class StoreError(AdvbenchError):
    """The store cannot be read or written."""


class GoneError(AdvbenchError):
    """What a task reads has left the store since the run was planned; making it again mends that.

    Args:
        key: the task whose result is gone.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(f"result {key[:12]} is gone from the store", remedy="run the same command again")

    def __reduce__(self) -> tuple[object, tuple[str]]:
        """Keep the key when the error travels between processes."""
        return type(self), (self.key,)


def unknown_name(kind: str, name: str, known: Iterable[str], *, remedy: str = "", note: str = "") -> InputError:
    """The error for a name that is not among `known`, with the nearest one as a suggestion, or else the remedy."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else remedy
    listed = ", ".join(names) if names else "none registered"
    advice = "; ".join(filter(None, [hint, note]))
    return InputError(f"unknown {kind} {name!r}", expected=f"one of {listed}", remedy=advice)


# How CUDA, its libraries and the CPU's allocator say that memory ran out where torch has no class of error for it.
_NO_MEMORY = ("can't allocate memory", "out of memory", "STATUS_ALLOC_FAILED", "cudaErrorMemoryAllocation")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)
