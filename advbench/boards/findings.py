"""What is wrong with a board, collected: all of it, alike findings in one line."""

from __future__ import annotations

from collections.abc import Iterator


class Findings:
    """A list of what does not hold, grouped by kind.

    Kinds come in the order in which the first of them was found.
    """

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}

    def add(self, kind: str, where: str = "") -> None:
        """Note that something does not hold.

        Args:
            kind: what, in words that are the same for all findings alike.
            where: in which file or cell, and what is there.
        """
        self._found.setdefault(kind, []).append(where)

    def __bool__(self) -> bool:
        return bool(self._found)

    def lines(self) -> Iterator[str]:
        """One line for each kind, with how often it was found and the first place."""
        for kind, places in self._found.items():
            count = f"{len(places)} times: " if len(places) > 1 else ""
            first = ", first " if len(places) > 1 and places[0] else ": " if places[0] else ""
            yield " ".join(f"{count}{kind}{first}{places[0]}".split())
