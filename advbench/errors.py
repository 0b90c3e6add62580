"""Exceptions for expected failures; any other exception is a bug and keeps its traceback."""

import difflib
import re
from collections.abc import Iterable

LONGEST_WORD = 300  # maximum characters of a name or value in a message
LONGEST_LINE = 2000


def printable(text: str) -> str:
    """Escape control characters, including line breaks, as in a Python string."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def one_line(text: str, limit: int = LONGEST_LINE) -> str:
    """Text as one printable line; long words, and the whole line, are shortened in the middle."""
    line = " ".join(printable(word) for word in _cut(text, 10 * limit).split())
    return _cut(re.sub(rf"\S{{{LONGEST_WORD + 1},}}", lambda word: _cut(word[0], LONGEST_WORD), line), limit)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - limit // 3 - 3]}...{text[-(limit // 3) :]}"


class AdvbenchError(Exception):
    """An expected failure with a one-line message: problem, expected and actual value, remedy.

    Args:
        problem: the problem, with the name of the culprit.
        expected: the expected value.
        got: the actual value.
        remedy: what the user can do.
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
        """Keep the composed message when the error is pickled."""
        return type(self), (str(self),)


class InputError(AdvbenchError):
    """Invalid input from the user: a name, a value, a file, an image."""


class MissingExtraError(InputError):
    """A library from one of advbench's extras is not installed.

    Args:
        needed_by: the part that needs the library.
        library: name of its distribution.
        extra: name of the extra.
    """

    def __init__(self, needed_by: str, library: str = "", extra: str = "") -> None:
        if not library:  # unpickled: the message is already composed
            super().__init__(needed_by)
            return
        super().__init__(
            f"{needed_by} needs {library}, which is not installed", remedy=f"pip install 'advbench[{extra}]'"
        )


class PluginError(AdvbenchError):
    """A plugin violated its contract: a false claim, a wrong shape, a non-finite number."""


class NoGradientError(PluginError):
    """An attack needs gradients, and the classifier has none with respect to the images."""


class ModelWarning(UserWarning):
    """A model has a defect that makes its evaluation or attacks on it unreliable."""


class OutOfMemoryError(PluginError):
    """A task does not fit in a device's memory, even with the smallest chunks."""


class StoreError(AdvbenchError):
    """The store cannot be read or written."""


class GoneError(AdvbenchError):
    """An input of a task was removed from the store after the run was planned; running again recreates it.

    Args:
        key: key of the task whose result is missing.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(f"result {key[:12]} is gone from the store", remedy="run the same command again")

    def __reduce__(self) -> tuple[object, tuple[str]]:
        """Keep the key when the error is pickled."""
        return type(self), (self.key,)


def expected_in(message: str) -> str:
    """The expected value in a message of pydantic, without its beginning."""
    text = message.removeprefix("Value error, ").removeprefix("Input should be ")
    return f"a value {text}" if text.startswith(("greater", "less")) else text[0].lower() + text[1:]


def unknown_name(kind: str, name: str, known: Iterable[str], *, remedy: str = "", note: str = "") -> InputError:
    """Create the error for a name that is not in `known`, with the nearest name as a suggestion, or else the remedy."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else remedy
    expected = f"one of {', '.join(names)}" if names else "a known name (there are none)"
    advice = "; ".join(filter(None, [hint, note]))
    return InputError(f"unknown {kind} {name!r}", expected=expected, remedy=advice)


# Messages of CUDA, its libraries and the CPU allocator for out-of-memory errors without a class of their own in torch.
# cuBLAS fails to initialise, and cuDNN has no engine left, also if their workspaces do not fit.
_NO_MEMORY = (
    "can't allocate memory",
    "out of memory",
    "STATUS_ALLOC_FAILED",
    "ALLOCATION_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "unable to find an engine",
    "cudaErrorMemoryAllocation",
)


def out_of_memory(error: BaseException) -> bool:
    """True if an error means that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)
