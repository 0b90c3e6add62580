"""Models that others judged, read from RobustBench's model files, and this board's defenses as such files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from advbench.errors import InputError, unknown_name
from advbench.grid.spec import RunSpec
from advbench.report.ranks import own_rows
from advbench.report.tables import Report, as_rows
from advbench.report.texts import format_eps
from advbench.store.storage import write_file

NORMS = {"linf": "Linf", "l2": "L2", "corruptions": "corruptions"}
# Where a file tells a model's robust accuracy, in RobustBench's own order: what an attack outside AutoAttack left
# counts before AutoAttack's, and what the authors report comes last.
ROBUST = {
    "external": "external evaluation",
    "autoattack_acc": "AutoAttack",
    "corruptions_acc": "common corruptions",
    "reported": "its authors",
}
TEXTS = ("name", "dataset", "architecture")


@dataclass(frozen=True)
class Reference:
    """A model as others reported it.

    Attributes:
        model: its id, the name of its file.
        name: title of its paper.
        authors: of the paper.
        venue: of the paper.
        link: to the paper; empty unless it is one of http or https.
        architecture: its net.
        dataset: that it was judged on.
        norm: `linf`, `l2` or `corruptions`, by the folder of its file; empty where that does not say.
        eps: radius, pixels in [0, 1]; None where there is none.
        clean: accuracy on clean images, a fraction; None where it is not told.
        robust: accuracy under attack, a fraction; None where it is not told.
        judged_by: what found the robust accuracy.
        passes: forward passes of one prediction.
        additional_data: whether it trained on more than the data set.
        unreliable: whether RobustBench doubts its number.
        footnote: what else is said of it.
    """

    model: str
    name: str
    authors: str
    venue: str
    link: str
    architecture: str
    dataset: str
    norm: str
    eps: float | None
    clean: float | None
    robust: float | None
    judged_by: str
    passes: int | None
    additional_data: bool
    unreliable: bool
    footnote: str


def read_references(paths: Iterable[Path]) -> list[Reference]:
    """The models that files, or all the JSON files in folders, tell of.

    Args:
        paths: files as RobustBench's `model_info/cifar10/Linf/Carmon2019Unlabeled.json`, or folders of them; the name
            of the folder that holds a file says the norm.

    Raises:
        InputError: a path that cannot be read, a folder without such files, or a file that is none.
    """
    return [_read(file) for path in paths for file in _files(Path(path))]


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    found = sorted(path.rglob("*.json"))
    if not found:
        raise InputError(f"references {path}", expected="a folder of RobustBench's model files (*.json)", got="none")
    yield from found


def _read(path: Path) -> Reference:
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else ""
        raise _bad(path, "readable JSON", reason or str(error)) from error
    if not isinstance(values, dict):
        raise _bad(path, "a JSON object", type(values).__name__)
    for name in TEXTS:
        if not isinstance(values.get(name), str):
            raise _bad(path, f"text under {name!r}", repr(values.get(name)))
    norms = {folder: norm for norm, folder in NORMS.items()}
    field = next((name for name in ROBUST if values.get(name) not in (None, "")), "")
    passes = values.get("number_forward_passes")
    link = _text(values, "link")
    return Reference(
        model=path.stem,
        name=_text(values, "name"),
        authors=_text(values, "authors"),
        venue=_text(values, "venue") or "Unpublished",
        link=link if re.match(r"https?://", link) else "",
        architecture=_text(values, "architecture"),
        dataset=values["dataset"],
        norm=norms.get(path.resolve().parent.name, ""),
        eps=_eps(path, values.get("eps")),
        clean=_percent(path, values, "clean_acc"),
        robust=_percent(path, values, field) if field else None,
        judged_by=ROBUST.get(field, ""),
        passes=passes if isinstance(passes, int) and not isinstance(passes, bool) else None,
        additional_data=values.get("additional_data") is True,
        unreliable=values.get("unreliable") is True,
        footnote=_text(values, "footnote"),
    )


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    return re.sub(r"\s*<br\s*/?>\s*", " ", value).strip() if isinstance(value, str) else ""


def _percent(path: Path, values: Mapping[str, Any], name: str) -> float | None:
    """A percentage, which is text or a number, as a fraction."""
    value = values.get(name)
    if value in (None, ""):
        return None
    found = _number(value)
    if not 0 <= found <= 100:
        raise _bad(path, f"a percentage under {name!r}", repr(value))
    return round(found / 100, 10)


def _eps(path: Path, value: Any) -> float | None:
    if value in (None, ""):
        return None
    found = _number(value)
    if not 0 <= found < math.inf:
        raise _bad(path, "a radius as '8/255' or '0.5' under 'eps'", repr(value))
    return found


def _number(value: Any) -> float:
    """A number, or text that says one, perhaps as a ratio; NaN for anything else."""
    try:
        if isinstance(value, str):
            above, slash, below = value.partition("/")
            return float(above) / float(below) if slash else float(above)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except (ValueError, ZeroDivisionError, OverflowError):
        return math.nan


def _bad(path: Path, expected: str, got: str) -> InputError:
    return InputError(
        f"reference {path}",
        expected=expected,
        got=got if len(got) <= 80 else f"{got[:80]}...",
        remedy="give model files as RobustBench has them",
    )


def model_info(report: Report, spec: RunSpec | None, defense: str) -> dict[str, Any]:
    """One of the board's defenses as RobustBench describes a model.

    Its lowest accuracy at the largest eps stands under `external`, RobustBench's field for what attacks other than its
    own AutoAttack found. Whose attack that was, over how many draws, with what interval, is in `footnote`.

    Args:
        report: the tables.
        spec: of the run, which knows whether the images were limited.
        defense: its label.

    Raises:
        InputError: an unknown defense, or one whose accuracies are not all there.
    """
    board = report.leaderboard
    if defense not in set(board.defense):
        raise unknown_name("defense", defense, board.defense)
    row = as_rows(board[board.defense == defense])[0]
    if math.isnan(row["worst"]) or math.isnan(row["clean"]):
        raise InputError(
            f"model file of {defense!r}", expected="all its accuracies", got=f"{row['failed_cells']} cells missing"
        )
    results = report.results[own_rows(report.results)]
    eps = float(results.eps.max())
    return {
        "link": "",
        "name": defense,
        "authors": "",
        "additional_data": False,
        "number_forward_passes": int(row["passes_to_predict"]),
        "dataset": row["dataset"],
        "venue": "Unpublished",
        "architecture": row["architecture"],
        "eps": format_eps(eps),
        "clean_acc": f"{100 * row['clean']:.2f}",
        "reported": f"{100 * row['worst']:.2f}",
        "external": f"{100 * row['worst']:.2f}",
        "footnote": _footnote(row, eps, spec),
        "unreliable": bool(row["flags"]),
    }


def _footnote(row: Mapping[str, Any], eps: float, spec: RunSpec | None) -> str:
    limited = spec is not None and spec.limit is not None
    seeds = f", mean over {row['seeds']} seeds" if row["seeds"] > 1 else ""
    flags = f" Flags: {row['flags'].replace(';', ', ')}." if row["flags"] else ""
    return (
        f"Judged by advbench, not by RobustBench: lowest accuracy is that under advbench's attack "
        f"{row['worst_attack']}, {row['norm']} eps {format_eps(eps)}, 95 % interval "
        f"[{100 * row['worst_low']:.2f}, {100 * row['worst_high']:.2f}] %, on {row['n_examples']} "
        f"{'of the ' if limited else ''}test images, ensemble of {row['draws']} "
        f"draw{'' if row['draws'] == 1 else 's'}{seeds}.{flags}"
    )


def write_model_infos(report: Report, spec: RunSpec | None, folder: Path) -> dict[str, Path]:
    """Write a model file for each defense, as RobustBench lays them out: `DATASET/Linf/DEFENSE.json`.

    Defenses with missing accuracies get none.

    Returns:
        The files written, by defense.

    Raises:
        InputError: no defense has all its accuracies.
        StoreError: the folder cannot be written.
    """
    board = report.leaderboard
    complete = board[board.worst.notna() & board.clean.notna()]
    if complete.empty:
        raise InputError("model files", expected="a defense with all its accuracies under attack", got="none")
    written = {}
    for row in as_rows(complete):
        data, name = (quote(str(row[which]), safe="@+") for which in ("dataset", "defense"))
        path = folder / data / NORMS.get(str(row["norm"]), quote(str(row["norm"]), safe="")) / f"{name}.json"
        text = json.dumps(model_info(report, spec, row["defense"]), indent=2, ensure_ascii=False)
        write_file(path, f"{text}\n".encode())
        written[str(row["defense"])] = path
    return written
