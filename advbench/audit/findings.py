"""What checks find: verdicts in sentences, and what they add up to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from advbench.errors import PluginError

Verdict = Literal["ok", "warning", "failed", "not checked"]
About = Literal["defense", "attack"]
LEVEL = 0.01  # of all tests of an audit together (Holm 1979)
ABOUT = {"defense": "the defense misleads attacks", "attack": "the attack has not converged"}


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: family and name, as `gradient: uphill`.
        verdict: `warning` says that something is unusual and costs strength, `failed` that the number is not to be
            believed; a test (a finding with `p`) has its verdict once all tests of the audit are known.
        sentence: what was found, with the figures.
        means: what that means for the number, where the verdict is a warning or worse.
        next: what to run or do next, likewise.
        about: whose fault it is: the defense misleads attacks, or the attack has not converged.
        passes: forward passes that the check made, for each image of the audit.
        p: p-value of a test; None of an exact check.
        counts: whether the difference is large enough to matter, whatever its p-value.
        rejected: verdict of a test that is rejected.
    """

    check: str
    verdict: Verdict
    sentence: str
    means: str = ""
    next: str = ""
    about: About = "defense"
    passes: float = 0.0
    p: float | None = None
    counts: bool = True
    rejected: Verdict = "failed"

    def to_json(self) -> dict[str, Any]:
        """The finding as JSON values."""
        return asdict(self)

    @classmethod
    def skipped(cls, check: str, reason: str) -> Finding:
        """A check that was not made."""
        return cls(check, "not checked", reason)


def settled(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings, with the verdicts of the tests among them under Holm's step-down procedure."""
    found = list(findings)
    tests = sorted((each.p, index) for index, each in enumerate(found) if each.p is not None)
    rejected = True
    for rank, (p, index) in enumerate(tests):
        rejected = rejected and p <= LEVEL / (len(tests) - rank)
        verdict = found[index].rejected if rejected and found[index].counts else "ok"
        found[index] = replace(found[index], verdict=verdict)
    return tuple(found)


def guarded(check: str, make: Callable[[], Finding | list[Finding]]) -> list[Finding]:
    """The findings of a check, or that it was not made where the classifier fails when it is so asked."""
    try:
        found = make()
    except PluginError as error:
        return [Finding.skipped(check, f"The classifier fails there: {error}")]
    return found if isinstance(found, list) else [found]


@dataclass(frozen=True)
class Audit:
    """What an audit of one classifier under one threat found.

    Attributes:
        name: what was audited.
        threat: norm and eps in words.
        images: how many.
        findings: of all checks.
        accuracies: draw accuracy under each attack that the audit ran, by its name, `clean` first.
    """

    name: str
    threat: str
    images: int
    findings: tuple[Finding, ...]
    accuracies: dict[str, float]

    @property
    def failed(self) -> tuple[Finding, ...]:
        """The findings of failed checks."""
        return tuple(each for each in self.findings if each.verdict == "failed")

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    @property
    def misleads(self) -> bool:
        """Whether the defense misleads attacks: what they say of it is an upper bound of unknown worth."""
        return any(each.about == "defense" for each in self.failed)

    @property
    def passes(self) -> float:
        """Forward passes for each image, of all checks."""
        return math.fsum(each.passes for each in self.findings)

    @property
    def conclusion(self) -> str:
        """The verdict on the evaluation, in a sentence."""
        reasons = [text for about, text in ABOUT.items() if any(each.about == about for each in self.failed)]
        if not reasons:
            made = sum(each.verdict != "not checked" for each in self.findings)
            return f"None of {made} checks speaks against the evaluation of {self.name}."
        return f"The evaluation of {self.name} cannot be believed: {' and '.join(reasons)}."

    def to_json(self) -> dict[str, Any]:
        """The audit as JSON values."""
        return {
            "name": self.name,
            "threat": self.threat,
            "images": self.images,
            "ok": self.ok,
            "misleads": self.misleads,
            "passes": self.passes,
            "accuracies": self.accuracies,
            "findings": [each.to_json() for each in self.findings],
        }

    def __str__(self) -> str:
        return markdown([self])


def markdown(audits: Sequence[Audit], checklist: str = "") -> str:
    """One page on several audits."""
    parts = ["# Audit"]
    for audit in audits:
        parts += [f"## {_escape(audit.name)}", f"{audit.threat}, {audit.images} images. {_escape(audit.conclusion)}"]
        if audit.accuracies:
            numbers = ", ".join(f"{_escape(name)} {value:.3f}" for name, value in audit.accuracies.items())
            parts.append(f"Accuracy of a draw, in the audit's own attacks: {numbers}.")
        rows = ["| check | verdict | what was found | p | passes |", "| --- | --- | --- | --- | --- |"]
        order = {"failed": 0, "warning": 1, "ok": 2, "not checked": 3}
        for each in sorted(audit.findings, key=lambda each: order[each.verdict]):
            text = each.sentence
            if each.verdict in ("failed", "warning"):
                text = " ".join(filter(None, [f"{text}", each.means, f"Next: {each.next}" if each.next else ""]))
            p = "" if each.p is None else f"{each.p:.2g}"
            verdict = f"**{each.verdict}** ({ABOUT[each.about]})" if each.verdict == "failed" else each.verdict
            rows.append(f"| {each.check} | {verdict} | {_escape(text)} | {p} | {each.passes:.3g} |")
        parts.append("\n".join(rows))
        tests = sum(each.p is not None for each in audit.findings)
        parts.append(f"{tests} tests at {LEVEL:.0%} together (Holm 1979); passes are forward passes of an image.")
    return "\n\n".join([*parts, *filter(None, [checklist])]) + "\n"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")
