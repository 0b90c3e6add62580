"""Models evaluated elsewhere, from RobustBench's model files, and export of a board's defenses as such files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import pydantic

from advbench.errors import InputError
from advbench.grid.spec import RunSpec
from advbench.report.leaderboard import CLEAN, Standing
from advbench.report.tables import Report
from advbench.report.texts import format_eps
from advbench.store.storage import write_file

NORMS = {"linf": "Linf", "l2": "L2", "corruptions": "corruptions"}
# Fields with a model's robust accuracy, in RobustBench's order of precedence: external evaluations, AutoAttack, the
# authors' own report.
ROBUST = {
    "external": "external evaluation",
    "autoattack_acc": "AutoAttack",
    "corruptions_acc": "common corruptions",
    "reported": "its authors",
}


def _number(value: Any) -> Any:
    """Parse a number, or text with a number or ratio such as `8/255`."""
    if not isinstance(value, str):
        return value
    above, _, below = value.partition("/")
    try:
        return float(above) / float(below or 1) if value not in ("", "null") else None
    except (ValueError, ZeroDivisionError, OverflowError):
        return value


def _line(value: Any) -> str:
    return re.sub(r"\s*<br\s*/?>\s*", " ", value).strip() if isinstance(value, str) else ""


Percentage = Annotated[
    float, pydantic.Field(ge=0, le=100), pydantic.AfterValidator(lambda value: round(value / 100, 10))
]
Fraction = Annotated[Percentage | None, pydantic.BeforeValidator(_number)]
Radius = Annotated[pydantic.NonNegativeFloat | None, pydantic.BeforeValidator(_number)]
Line = Annotated[str, pydantic.BeforeValidator(_line)]
Passes = Annotated[int | None, pydantic.BeforeValidator(lambda value: value if type(value) is int else None)]
Truth = Annotated[bool, pydantic.BeforeValidator(lambda value: value is True)]


class Reference(pydantic.BaseModel):
    """A model evaluated elsewhere, with RobustBench's field names."""

    model_config = pydantic.ConfigDict(
        frozen=True, strict=True, allow_inf_nan=False, str_strip_whitespace=True, defer_build=True
    )

    model: str = ""  # id, the name of its file
    norm: str = ""  # `linf`, `l2` or `corruptions`, from the folder of its file; empty if unknown
    name: str  # title of its paper
    dataset: str  # data set of the evaluation
    architecture: str
    venue: Line = ""
    link: Line = ""  # link to the paper; empty unless http or https
    eps: Radius = None  # radius for pixels in [0, 1]
    clean_acc: Fraction = None
    external: Fraction = None  # this and the next three: accuracy under attack; `ROBUST` names the evaluators
    autoattack_acc: Fraction = None
    corruptions_acc: Fraction = None
    reported: Fraction = None
    number_forward_passes: Passes = None  # forward passes per prediction
    additional_data: Truth = False  # True if trained on additional data
    unreliable: Truth = False  # True if flagged by RobustBench
    footnote: Line = ""

    @pydantic.field_validator("link")
    @classmethod
    def _web(cls, value: str) -> str:
        return value if re.match(r"https?://", value) else ""

    @property
    def robust(self) -> float | None:
        """Accuracy under attack, as a fraction; None if missing."""
        return next((found for name in ROBUST if (found := getattr(self, name)) is not None), None)

    @property
    def evaluated_by(self) -> str:
        """Evaluator of the robust accuracy; empty if missing."""
        return next((by for name, by in ROBUST.items() if getattr(self, name) is not None), "")


def read_references(paths: Iterable[Path]) -> list[Reference]:
    """Read models from files, or from all JSON files in folders.

    Args:
        paths: files such as RobustBench's `model_info/cifar10/Linf/Carmon2019Unlabeled.json`, or folders of them; the
            name of a file's folder is the norm.

    Raises:
        InputError: a path cannot be read, a folder has no such files, or a file is invalid.
    """
    found: list[Reference] = []
    for path in map(Path, paths):
        files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
        if not files:
            expected = "a folder of RobustBench's model files (*.json)"
            raise InputError(f"references {path}", expected=expected, got="none")
        found += map(_read, files)
    return found


def _read(path: Path) -> Reference:
    norms = {folder: norm for norm, folder in NORMS.items()}
    place = {"model": path.stem, "norm": norms.get(path.resolve().parent.name, "")}
    try:
        return Reference.model_validate_json(path.read_bytes()).model_copy(update=place)
    except OSError as error:
        expected, got = "a readable file", error.strerror or str(error)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        where = f" under {first['loc'][0]!r}" if first["loc"] else ""
        expected, got = f"{message[0].lower()}{message[1:]}{where}", repr(first["input"])
    got = got if len(got) <= 80 else f"{got[:80]}..."
    raise InputError(f"reference {path}", expected=expected, got=got, remedy="use model files in RobustBench's format")


def model_info(report: Report, one: Standing, spec: RunSpec | None) -> dict[str, Any]:
    """Describe a defense in RobustBench's format.

    The lowest accuracy at the largest eps is in `external`, RobustBench's field for attacks other than AutoAttack, and
    that under AutoAttack, if available, in `autoattack_acc`. Both are numbers, as RobustBench's scripts expect; attack,
    upper bound, draws, seeds, interval and rank are in `footnote`.

    Args:
        report: the board's tables.
        one: the defense.
        spec: spec of the run, for the limit on images.
    """
    eps = report.radii()[-1]
    methods = report.methods[(report.methods.kind == "defense") & (report.methods.label == one.defense)]
    paper = methods.iloc[0] if len(methods) and methods.iloc[0].title else None
    auto = [label for label in _labels(report, "autoattack") if not one.accuracy(label, eps).missing]
    return {
        "link": paper.link if paper is not None else "",
        "name": paper.title if paper is not None else one.defense,
        "authors": paper.authors if paper is not None else "",
        "additional_data": False,
        "number_forward_passes": one.draws,
        "dataset": one.dataset,
        "venue": str(paper.year) if paper is not None else "Unpublished",
        "architecture": one.architecture,
        "eps": format_eps(eps),
        "clean_acc": _percent(one.accuracies[CLEAN].value),
        "reported": _percent(one.lowest.value),
        **({"autoattack_acc": _percent(min(one.accuracy(label, eps).value for label in auto))} if auto else {}),
        "external": _percent(one.lowest.value),
        "footnote": " ".join(_footnote(report, one, spec)),
        "unreliable": bool(one.flags),
    }


def _labels(report: Report, attack: str) -> list[str]:
    """Labels of an attack in the run."""
    methods = report.methods
    return list(methods[(methods.kind == "attack") & (methods.name == attack)].label)


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _footnote(report: Report, one: Standing, spec: RunSpec | None) -> Iterator[str]:
    """Sentences for information without a field in RobustBench's format."""
    radii = report.radii()
    low, high = _percent(one.lowest.low), _percent(one.lowest.high)
    limited = "of the " if spec is not None and spec.limit is not None else ""
    seeds = f", mean over {one.seeds} seeds" if one.seeds > 1 else ""
    draws = "1 draw" if one.draws == 1 else f"{one.draws} draws"
    bound = ", an upper bound (an attack did not converge)" if one.lowest.bound else ""
    yield (
        f"Evaluated by advbench, not by RobustBench, as its method {one.defense}: lowest accuracy is that under "
        f"advbench's attack {one.lowest_attack}, {one.norm} eps {format_eps(radii[-1])}, 95 % interval [{low}, {high}] "
        f"%, on {one.n_examples} {limited}test images, ensemble of {draws}{seeds}{bound}."
    )
    if not one.area.missing and len(radii) > 1:
        area, low, high = map(_percent, one.area[:3])
        yield (
            f"Area under the lowest accuracies over eps {', '.join(map(format_eps, radii))}: "
            f"{'at most ' if one.area.bound else ''}{area} %, 95 % interval [{low}, {high}] %."
        )
    if one.rank is not None:
        others = f", possible ranks {one.rank_low} to {one.rank_high}"
        ranked = sum(each.rank is not None for each in report.standings)
        yield f"Rank {one.rank} of {ranked}{others if one.rank_low != one.rank_high else ''}."
    elif one.misleads:
        yield "No rank: checks found that it misleads attacks, so its accuracies may be loose upper bounds."
    if one.flags:
        yield f"Flags: {', '.join(one.flags)}."


def write_model_infos(report: Report, spec: RunSpec | None, folder: Path) -> dict[str, Path]:
    """Write a model file for each defense in RobustBench's layout: `DATASET/Linf/DEFENSE.json`.

    Defenses with missing accuracies are skipped.

    Returns:
        The written files, by defense.

    Raises:
        InputError: no defense has all accuracies.
        StoreError: the folder cannot be written.
    """
    complete = [one for one in report.standings if not (one.lowest.missing or one.accuracies[CLEAN].missing)]
    if not complete:
        raise InputError("model files", expected="a defense with all its accuracies under attack", got="none")
    written = {}
    for one in complete:
        data, name = (quote(text, safe="@+") for text in (one.dataset, one.defense))
        path = folder / data / NORMS.get(one.norm, quote(one.norm, safe="")) / f"{name}.json"
        text = json.dumps(model_info(report, one, spec), indent=2, ensure_ascii=False)
        write_file(path, f"{text}\n".encode())
        written[one.defense] = path
    return written
