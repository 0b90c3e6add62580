"""Models that others evaluated, read from RobustBench's model files, and this board's defenses as such files."""

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
# Where a file has a model's robust accuracy, in RobustBench's own order: what an attack outside AutoAttack left
# counts before AutoAttack's, and what the authors report comes last.
ROBUST = {
    "external": "external evaluation",
    "autoattack_acc": "AutoAttack",
    "corruptions_acc": "common corruptions",
    "reported": "its authors",
}


def _number(value: Any) -> Any:
    """A number, or text that holds one, perhaps as a ratio: `8/255`."""
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
    """A model as others reported it, under RobustBench's names."""

    model_config = pydantic.ConfigDict(
        frozen=True, strict=True, allow_inf_nan=False, str_strip_whitespace=True, defer_build=True
    )

    model: str = ""  # its id, the name of its file
    norm: str = ""  # `linf`, `l2` or `corruptions`, by the folder of its file; empty where that does not say
    name: str  # title of its paper
    dataset: str  # that it was evaluated on
    architecture: str
    venue: Line = ""
    link: Line = ""  # to the paper; empty unless it is one of http or https
    eps: Radius = None  # pixels in [0, 1]
    clean_acc: Fraction = None
    external: Fraction = None  # this and the next three: accuracy under attack, by whose evaluation `ROBUST` says
    autoattack_acc: Fraction = None
    corruptions_acc: Fraction = None
    reported: Fraction = None
    number_forward_passes: Passes = None  # of one prediction
    additional_data: Truth = False  # whether it trained on more than the data set
    unreliable: Truth = False  # whether RobustBench says so
    footnote: Line = ""

    @pydantic.field_validator("link")
    @classmethod
    def _web(cls, value: str) -> str:
        return value if re.match(r"https?://", value) else ""

    @property
    def robust(self) -> float | None:
        """Accuracy under attack, a fraction; None where it is missing."""
        return next((found for name in ROBUST if (found := getattr(self, name)) is not None), None)

    @property
    def evaluated_by(self) -> str:
        """What found the robust accuracy; empty where there is none."""
        return next((by for name, by in ROBUST.items() if getattr(self, name) is not None), "")


def read_references(paths: Iterable[Path]) -> list[Reference]:
    """The models in files, or in all the JSON files in folders.

    Args:
        paths: files as RobustBench's `model_info/cifar10/Linf/Carmon2019Unlabeled.json`, or folders of them; the name
            of the folder that holds a file says the norm.

    Raises:
        InputError: a path that cannot be read, a folder without such files, or a file that is none.
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
    raise InputError(f"reference {path}", expected=expected, got=got, remedy="give model files as RobustBench has them")


def model_info(report: Report, one: Standing, spec: RunSpec | None) -> dict[str, Any]:
    """One of the board's defenses as RobustBench describes a model.

    Its lowest accuracy at the largest eps stands under `external`, RobustBench's field for what attacks other than its
    own AutoAttack found, and that under AutoAttack, where the board has it, under `autoattack_acc`. These are numbers,
    as RobustBench's scripts expect: whether one is an upper bound, under which attack it is, over how many draws and
    seeds, with what interval, and where the defense stands on the board, is in `footnote`.

    Args:
        report: the board's tables.
        one: the defense.
        spec: of the run, which knows whether the images were limited.
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
    """Under which labels an attack was run."""
    methods = report.methods
    return list(methods[(methods.kind == "attack") & (methods.name == attack)].label)


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


def _footnote(report: Report, one: Standing, spec: RunSpec | None) -> Iterator[str]:
    """What RobustBench has no field for, in sentences."""
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
        others = f", not told apart from ranks {one.rank_low} to {one.rank_high}"
        ranked = sum(each.rank is not None for each in report.standings)
        yield f"Rank {one.rank} of {ranked}{others if one.rank_low != one.rank_high else ''}."
    elif one.misleads:
        yield "No rank: checks say that attacks are misled, so its numbers are upper bounds of unknown worth."
    if one.flags:
        yield f"Flags: {', '.join(one.flags)}."


def write_model_infos(report: Report, spec: RunSpec | None, folder: Path) -> dict[str, Path]:
    """Write a model file for each defense, as RobustBench lays them out: `DATASET/Linf/DEFENSE.json`.

    Defenses with missing accuracies get none.

    Returns:
        The files written, by defense.

    Raises:
        InputError: no defense has all its accuracies.
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
