"""Python's collector of cycles, which looks through everything that a large grid's tables keep, again and again."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """Leave cycles alone meanwhile, as a context or a decorator: for what makes many objects that all stay."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
