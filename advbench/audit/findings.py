"""Findings of checks, with verdicts and sentences, and the conclusion of an audit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from advbench.errors import PluginError

Verdict = Literal["ok", "warning", "failed", "not checked"]
About = Literal["defense", "attack"]
LEVEL = 0.01  # family-wise significance level of all tests of an audit (Holm 1979)
ACCURACIES = (
    "Accuracy of a single draw under the audit's own attacks. The gradient attack is PGD with 20 steps, on a random "
    "classifier with gradients averaged over 10 draws. *Left unbroken* are the images that more than a fifth of the "
    "draws classify correctly under it; further attacks are compared with a second run of it on these images."
)
LEFT = ", of those left"  # in names of accuracies: on the images that the gradient attack left unbroken
ATTACKS = {
    "clean": "none",
    "pgd": "gradient attack",
    "fgsm": "one step (fgsm)",
    "margin loss": "gradient attack, margin loss",
    "targeted attack": "gradient attack, targeted at the runner-up",
    "smoothed gradient": "gradient attack, gradients averaged over noise around the image",
    "surrogate": "gradient attack with the stand-in's gradient",
    "transfer": "transfer from a plain net",
}
ABOUT = {"defense": "the defense misleads attacks", "attack": "the attack has not converged"}


@dataclass(frozen=True)
class Finding:
    """Finding of one check.

    Attributes:
        check: family and name of the check, such as `gradient: uphill`.
        verdict: `warning` for something unusual that weakens attacks, `failed` if the evaluation is not credible; the
            verdict of a test (a finding with `p`) follows when all tests of the audit are known.
        sentence: description of the finding, with figures.
        means: consequence for the evaluation, if the verdict is `warning` or `failed`.
        next: recommended next step in that case.
        about: cause of the problem: the defense misleads attacks, or the attack has not converged.
        passes: number of forward passes of the check, per image of the audit.
        p: p-value of a test; None for an exact check.
        counts: True if the difference is large enough to matter, regardless of its p-value.
        rejected: verdict if the null hypothesis of a test is rejected.
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
        """Return the finding as JSON values."""
        return asdict(self)

    @classmethod
    def skipped(cls, check: str, reason: str) -> Finding:
        """Finding of a check that was not run."""
        return cls(check, "not checked", reason)


def with_verdicts(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Set the verdicts of tests among the findings by Holm's step-down procedure."""
    found = list(findings)
    tests = sorted((each.p, index) for index, each in enumerate(found) if each.p is not None)
    rejected = True
    for rank, (p, index) in enumerate(tests):
        rejected = rejected and p <= LEVEL / (len(tests) - rank)
        verdict = found[index].rejected if rejected and found[index].counts else "ok"
        found[index] = replace(found[index], verdict=verdict)
    return tuple(found)


def guarded(check: str, make: Callable[[], Finding | list[Finding]]) -> list[Finding]:
    """Run a check; if the classifier raises an error, return a finding that the check was not run."""
    try:
        found = make()
    except PluginError as error:
        return [Finding.skipped(check, f"The classifier raised an error: {error}")]
    return found if isinstance(found, list) else [found]


@dataclass(frozen=True)
class Audit:
    """Result of an audit of one classifier under one threat.

    Attributes:
        name: name of the audited classifier.
        threat: norm and eps as text.
        images: number of images.
        findings: findings of all checks.
        accuracies: draw accuracy under each attack of the audit, by name, `clean` first.
        counts: number of images of each accuracy.
    """

    name: str
    threat: str
    images: int
    findings: tuple[Finding, ...]
    accuracies: dict[str, float]
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def failed(self) -> tuple[Finding, ...]:
        """Findings of failed checks."""
        return tuple(each for each in self.findings if each.verdict == "failed")

    @property
    def ok(self) -> bool:
        """True if no check failed."""
        return not self.failed

    @property
    def misleads(self) -> bool:
        """True if the defense misleads attacks, so that accuracy under attack is a loose upper bound."""
        return any(each.about == "defense" for each in self.failed)

    @property
    def passes(self) -> float:
        """Number of forward passes per image in all checks."""
        return math.fsum(each.passes for each in self.findings)

    @property
    def conclusion(self) -> str:
        """Conclusion about the evaluation, in a sentence."""
        reasons = [text for about, text in ABOUT.items() if any(each.about == about for each in self.failed)]
        if not reasons:
            made = sum(each.verdict != "not checked" for each in self.findings)
            return f"None of {made} checks found a problem with the evaluation of {self.name}."
        return f"The evaluation of {self.name} is not credible: {' and '.join(reasons)}."

    def to_json(self) -> dict[str, Any]:
        """Return the audit as JSON values."""
        return {
            "name": self.name,
            "threat": self.threat,
            "images": self.images,
            "ok": self.ok,
            "misleads": self.misleads,
            "passes": self.passes,
            "accuracies": self.accuracies,
            "counts": self.counts,
            "findings": [each.to_json() for each in self.findings],
        }

    def __str__(self) -> str:
        return markdown([self])


def markdown(audits: Sequence[Audit], checklist: str = "") -> str:
    """Format several audits as a Markdown page."""
    parts = ["# Audit"]
    for audit in audits:
        parts += [f"## {_escape(audit.name)}", f"{audit.threat}, {audit.images} images. {_escape(audit.conclusion)}"]
        if audit.accuracies:
            parts += [ACCURACIES, "\n".join(_accuracies(audit))]
        rows = ["| check | verdict | finding | p | passes |", "| --- | --- | --- | --- | --- |"]
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
        parts.append(
            f"{tests} tests at a family-wise level of {LEVEL:.0%} (Holm 1979); passes are forward passes per image."
        )
    return "\n\n".join([*parts, *filter(None, [checklist])]) + "\n"


def _accuracies(audit: Audit) -> Iterator[str]:
    """Rows of the table of accuracies."""
    yield from ("| attack | images | accuracy |", "| --- | --- | --- |")
    for name, value in audit.accuracies.items():
        attack, left, _ = name.partition(LEFT)
        if attack.startswith(("5 x ", "at ")):
            attack = f"gradient attack {attack.replace('5 x', 'with 5 times the')}"
        images = f"{audit.counts.get(name, audit.images)}{' left unbroken' if left else ''}"
        yield f"| {_escape(ATTACKS.get(attack, attack))} | {images} | {value:.3f} |"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")
