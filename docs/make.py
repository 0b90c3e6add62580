"""Write the parts of the documentation that follow from the sources and from the digits boards.

`python docs/make.py` writes commands.md, methods.md, attacks.md, data.md and digits.svg, the table in README.md, the
flags in metrics.md, the items in reproduce.md and the tables in claims.md.
"""

from __future__ import annotations

import inspect
import itertools
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import typer
from tabulate import tabulate

from advbench.boards.board import read_board
from advbench.boards.studies import all_items, read_study
from advbench.cli.app import app
from advbench.cli.describe import _shown, _type, plugin_lines
from advbench.cli.options import EXECUTION_OPTIONS, SPEC_OPTIONS
from advbench.models.nets import net_params
from advbench.registry import Entry, Kind, registry
from advbench.registry.params import Configurable, Params
from advbench.report import Report
from advbench.report.charts import security_curves
from advbench.report.figures import draw_chart, to_bytes
from advbench.report.flags import FLAGS
from advbench.report.texts import parts
from advbench.report.views import rank_range

DOCS = Path(__file__).parent
ROOT = DOCS.parent
BOARD = ROOT / "leaderboards" / "digits"
PAPERS = ROOT / "leaderboards" / "papers"
BOARDS = {"linf": BOARD, "l2": ROOT / "leaderboards" / "digits-l2"}  # by norm
SHOWN = 8  # defenses in the README
CLAIMS = (  # the defense that is said to be more robust, and the other
    ("adv_bnn", "pgd_at"),
    ("adv_bnn", "rse"),
    ("hierarchical_vi", "pgd_at"),
    ("hierarchical_vi", "adv_bnn"),
    ("adversarial_sampling", "bnn"),
    ("bal", "bnn_sgadald"),
    ("bal", "wrm"),
    ("bal", "ifgsm_at"),
    ("bal", "fgsm_at"),
)
UNCERTAIN = ("apd", "sgld", "mc_dropout", "bnn", "rse", "adv_bnn", "hierarchical_vi")
BRIDGES = ("advbench_robustbench.", "advbench_torchattacks.")
NOTE = "<!-- Written by docs/make.py. -->"
PART = "(<!-- {} -->\n).*?(<!-- end -->)"  # of a page, for the rest is written by hand
BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
GROUPS = {"Options of a run": SPEC_OPTIONS, "Options of the execution": EXECUTION_OPTIONS}
HEADS = {
    "commands": """
# Commands and options

What `advbench COMMAND --help` prints. Values of a list are separated by commas, or the option is repeated.

Exit codes: 0 all done; 1 some cells failed, or a check did not pass; 2 bad input; 130 interrupted.
""",
    "methods": """
# Training methods

Each method trains any module of `torch.nn` layers and returns a classifier. `advbench show NAME` prints the same text.
A hyperparameter is set by `--set NAME.PARAM=VALUE` and a whole preset by `--set NAME.preset=paper`; a preset named
after a data set holds the defaults for it. N is the number of training images. KL divergences are sums over the
weights, in nats; the loss of a minibatch is a mean over its images.
""",
    "attacks": """
# Attacks

Images lie in [0, 1], and eps is in the same units. Against a random classifier, white-box attacks draw fresh weights
at each step unless the text says otherwise. `advbench show NAME` prints the same text.

The examples that an attack returns are checked for ball, box, shape, dtype and finiteness, with a tolerance of 1e-6.
A violation is an error; examples are never clipped silently. Forward and backward passes are counted.
""",
    "data": """
# Data sets and networks

Images are float32 in [0, 1]; networks normalise them inside. Splits are fixed: every run has the same training,
validation and test images. A data set that is not in `--data-root` is downloaded into it, unless noted otherwise.
""",
}


def from_sources() -> Iterator[tuple[Path, bytes]]:
    """Path and content of each page that follows from docstrings and options, in whole or in part."""
    written = {"commands": _commands(), "methods": _plugins("defense"), "attacks": _plugins("attack"), "data": _data()}
    for name, sections in written.items():
        yield DOCS / f"{name}.md", ("\n\n".join([NOTE, HEADS[name].strip(), *sections]) + "\n").encode()
    flags = "\n".join(f"- `{flag}`: {_plain(meaning)}." for flag, meaning in FLAGS.items())
    yield _with_part(DOCS / "metrics.md", "flags", flags)
    yield _with_part(DOCS / "reproduce.md", "items", "\n".join(_items()))


def from_board() -> Iterator[tuple[Path, bytes]]:
    """Path and content of what follows from the digits board."""
    report = read_board(BOARD).report
    attack = report.standings[0].lowest_attack or report.attacks[-1]
    yield DOCS / "digits.svg", to_bytes(draw_chart(security_curves(report, attack)), "svg")
    yield _with_part(ROOT / "README.md", "table of the digits board", digits_table(report))
    page = DOCS / "claims.md"
    for name, table in {"robustness": _robustness(), "spread": _spread(), "uncertainty": _uncertainty()}.items():
        page.write_bytes(_with_part(page, name, table)[1])
    yield page, page.read_bytes()


def _with_part(path: Path, name: str, part: str) -> tuple[Path, bytes]:
    """A page whose part of that name is replaced."""
    pattern = re.compile(PART.format(name), re.DOTALL)
    return path, pattern.sub(lambda found: f"{found[1]}\n{part}\n\n{found[2]}", path.read_text()).encode()


def digits_table(report: Report) -> str:
    """The digits board in brief, a row for each of its first defenses."""
    eps = report.radii()[-1]
    rows = []
    for one in report.standings[:SHOWN]:
        rank = " ".join(
            filter(None, [parts(one.rank)[0], f"({rank_range(one).replace(' to ', '-')})" if rank_range(one) else ""])
        )
        clean, area, lowest = map(parts, (one.accuracies["none", 0.0], one.area, one.lowest))
        rows.append([rank, f"`{one.defense}`", clean[0], " ".join(area[:2]), " ".join(lowest[:2]), one.draws])
    headings = ["rank", "defense", "clean", "area", f"eps {eps:g}", "passes"]
    table = tabulate(rows, headings, tablefmt="github", disable_numparse=True)
    return f"{table}\n\nThe first {len(rows)} of {len(report.standings)} defenses."


def _robustness() -> str:
    """Claims that one defense is more robust than another, by the difference of their areas in each norm."""
    tables = {norm: pd.read_csv(board / "differences.csv").query("eps.isna()") for norm, board in BOARDS.items()}
    rows = []
    for better, worse in CLAIMS:
        row = [f"{better} > {worse}"]
        for table in tables.values():
            pair = table[table.defense.isin([better, worse]) & table.other.isin([better, worse])].iloc[0]
            sign = 1 if pair.defense == better else -1
            low, high = sorted([sign * pair.difference_low, sign * pair.difference_high])
            mark = "holds" if low > 0 else "fails" if high < 0 else "undecided"
            row += [f"{sign * pair.difference:.3f} [{low:.3f}, {high:.3f}] {mark}"]
        rows.append(row)
    headings = ["more robust", *(f"difference in {norm}" for norm in tables)]
    return tabulate(rows, headings, "github", disable_numparse=True)


def _spread() -> str:
    """Lowest and highest accuracy of 20 draws, mean over the seeds, and the seeds on which they differ as claimed."""
    table = pd.read_csv(BOARD / "results.csv")
    names, ends = ("bnn", "adversarial_sampling"), ["draw_accuracy_min", "draw_accuracy_max"]
    rows = []
    for attack in ("none", "worst_case"):
        own = table[(table.source == table.defense) & (table.attack == attack)]
        eps = sorted(own.eps.unique())[:2][-1]
        bnn, other = (own[(own.defense == name) & (own.eps == eps)].set_index("seed")[ends] for name in names)
        means = (" to ".join(f"{mean:.3f}" for mean in each.mean()) for each in (bnn, other))
        holds = (other[ends[0]] > bnn[ends[0]], other.diff(axis=1)[ends[1]] < bnn.diff(axis=1)[ends[1]])
        where = "clean" if attack == "none" else f"{attack} {eps:g}"
        rows.append([where, *means, *(f"{each.sum()} of {len(each)}" for each in holds)])
    headings = ["images", *(f"`{name}`" for name in names), "lowest higher", "spread smaller"]
    return tabulate(rows, headings, "github", disable_numparse=True)


def _uncertainty() -> str:
    """AUROC of detecting adversarial images by total uncertainty, and accepted errors, at the largest radius."""
    table = pd.read_csv(BOARD / "uncertainty.csv")
    rows = []
    for defense in UNCERTAIN:
        own = table[(table.defense == defense) & (table.source == defense) & (table.eps == table.eps.max())]
        cells = [
            own.loc[own.attack == attack, f"{column}_total"]
            for column, attack in itertools.product(("auroc", "accepted_errors"), ("eot_pgd", "certain"))
        ]
        spans = [f" ({each.min():.2f}-{each.max():.2f})" if len(each) > 1 else "" for each in cells]
        rows.append([f"`{defense}`", *(f"{each.mean():.2f}{span}" for each, span in zip(cells, spans, strict=True))])
    headings = ["defense", "AUROC", "under `certain`", "accepted errors", "under `certain`"]
    return tabulate(rows, headings, "github", disable_numparse=True)


def _items() -> Iterator[str]:
    """A line for each table and figure of the papers."""
    for item in all_items():
        study = read_study(item, "paper")
        how = f"scales {', '.join(item.scales)}" if item.scales else "not yet"
        found = [PAPERS / item.title / scale / "comparison.md" for scale in item.scales]
        links = [f"; result: [{_verdict(path)}](../{path.relative_to(ROOT)})" for path in found if path.is_file()]
        yield f"- `{item.title}`: {study.file.title}; {how}; needs {', '.join(study.needs)}{''.join(links)}"


def _verdict(comparison: Path) -> str:
    """Verdict and scale of a comparison, from its second paragraph."""
    return comparison.read_text().split("\n\n")[1].replace("*", "").replace("`", "").removesuffix(".")


def _commands() -> Iterator[str]:
    command: Any = typer.main.get_command(app)
    run = command.commands["run"]
    for heading, options in GROUPS.items():
        names = [option.name for option in options]
        shown = [f"- {_option(each)}" for each in run.params if each.name in names]
        yield f"## {heading}\n\n" + "\n".join(shown)
    yield from _command("advbench", command)


def _command(name: str, command: Any) -> Iterator[str]:
    text = " ".join(inspect.cleandoc(command.help or "").split())
    options = [each for each in command.params if each.opts != ["--help"]]
    usage = " ".join([name, *(_argument(each) for each in options if each.param_type_name == "argument")])
    lines = []
    for heading, group in GROUPS.items():
        names = {option.name for option in group}
        if names <= {each.name for each in options}:
            options = [each for each in options if each.name not in names]
            lines.append(f"- the [{heading.lower()}](#{heading.lower().replace(' ', '-')})")
    lines = [*(f"- {_option(option)}" for option in options), *lines]
    yield "\n\n".join(filter(None, [f"## `{usage}`", _plain(text), "\n".join(lines)]))
    for sub, each in getattr(command, "commands", {}).items():
        yield from _command(f"{name} {sub}", each)


def _argument(argument: Any) -> str:
    shown = (argument.metavar or argument.name).upper()
    return shown if argument.required else f"[{shown}]"


def _option(option: Any) -> str:
    if option.param_type_name == "argument":
        return f"`{_argument(option)}`: {_plain(option.help or '')}"
    flags = ", ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts))
    text = _plain(option.help or "")
    variable = f"; environment variable `{option.envvar}`" if option.envvar else ""
    plain = option.default is not None and option.default != "" and not option.is_flag
    default = f" [default: {option.default}]" if plain and "[default" not in (option.help or "") else ""
    return f"{flags}: {text}{default}{variable}"


def _plugins(kind: Kind) -> Iterator[str]:
    """A section for each training method or attack, then one for each set of shared hyperparameters."""
    classes: dict[str, type[Configurable]] = {
        entry.shown: registry().load(kind, entry.name) for entry in registry().entries(kind) if not _bridges(entry)
    }
    names: dict[type[Any], str] = {cls.Params: name for name, cls in classes.items()}
    shared: dict[type[Params], None] = {}
    for name, cls in classes.items():
        bases = [base for base in cls.Params.__mro__[1:] if _own(base)]
        shared |= dict.fromkeys(base for base in bases if base not in names)
        links = [names.get(base, base.__qualname__) for base in bases]
        yield "\n\n".join(_plugin(name, cls, links))
    for entry in filter(_bridges, registry().entries(kind)):
        yield f"## `{entry.shown}`\n\n{_plain(entry.summary)}. See [bridges](plugins.md#bridges-to-other-libraries)."
    yield "# Shared hyperparameters"
    for base in sorted(shared, key=lambda base: len(base.__mro__)):
        yield f"## `{base.__qualname__}`\n\n{_prose(base)}\n\n{_hyperparameters(base, _own(base))}"


def _bridges(entry: Entry) -> bool:
    """Whether a name stands for another library's, which need not be installed here."""
    return entry.target.startswith(BRIDGES)


def _plugin(name: str, cls: type[Configurable], bases: list[str]) -> Iterator[str]:
    yield f"## `{name}`"
    yield _prose(cls)
    if paper := vars(cls).get("paper"):
        yield f"{_plain(str(paper))} <{paper.link}>"
    traits = {"norms": getattr(cls, "norms", None), "minimal norm": getattr(cls, "minimal_norm", None)}
    found = [f"{trait}: {', '.join(sorted(value))}" for trait, value in traits.items() if isinstance(value, frozenset)]
    if traits["minimal norm"]:
        found.append("minimal-norm attack: one run serves every eps")
    if found:
        yield "; ".join(found).capitalize() + "."
    if own := _own(cls.Params):
        yield _hyperparameters(cls.Params, own)
    if bases:
        links = ", ".join(f"[`{base}`](#{base.lower()})" for base in bases)
        yield f"{'Also takes' if own else 'Takes'} the hyperparameters of {links}."
    if cls.presets:
        yield "\n".join(f"- preset `{preset}`: {_values(values)}" for preset, values in cls.presets.items())


def _own(params: type[Any]) -> list[str]:
    """Names of the hyperparameters that a class declares or changes itself."""
    fields = getattr(params, "model_fields", {})
    return [name for name in fields if name in vars(params).get("__annotations__", {})]


def _hyperparameters(params: type[Params], names: Iterable[str]) -> str:
    """A list of hyperparameters, each with its type, default and description."""
    lines = []
    for name in names:
        info = params.model_fields[name]
        default = "required" if info.is_required() else f"default {_value(info.get_default(call_default_factory=True))}"
        kind = re.sub(r"\b(ge|gt|le|lt) (?=[\d-])", lambda found: f"{BOUNDS[found[1]]} ", _type(info))
        lines.append(f"- `{name}` ({_plain(kind)}; {_plain(default)}): {_plain(info.description or '')}")
    return "\n".join(lines)


def _values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}={_value(value)}`" for name, value in values.items())


def _value(value: Any) -> str:
    return "none" if value is None else _shown(list(value) if isinstance(value, tuple) else value)


def _prose(cls: type[Any]) -> str:
    """A docstring as Markdown."""
    return "\n\n".join(_wrapped(text) for text in inspect.cleandoc(cls.__doc__ or "").split("\n\n"))


def _wrapped(text: str) -> str:
    # A list or heading begins where a line begins with its mark, which a dash or plus in a formula must not do.
    words = re.sub(r" ([-+=]|\d+[.)]) ", r"\0\1 ", _plain(text))
    lines = textwrap.wrap(words, 118, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace("\0", " ")


def _plain(text: str) -> str:
    """Text in which Markdown marks nothing but code."""
    pieces = " ".join(text.split()).split("`")
    shown = [re.sub(r"[*~\\]|<(?=[A-Za-z/!?])|(?<!\w)_|_(?!\w)|\](?=\()", r"\\\g<0>", piece) for piece in pieces]
    return "`".join(
        plain if place % 2 == 0 else code for place, (plain, code) in enumerate(zip(shown, pieces, strict=True))
    )


def _data() -> Iterator[str]:
    yield "## Data sets"
    found = []
    for entry in registry().entries("dataset"):
        defaults = [line.removeprefix("default ") for line in plugin_lines(entry.name) if line.startswith("default ")]
        found.append(f"- `{entry.shown}`: {_plain(entry.summary)}. Defaults: {'; '.join(defaults)}.")
    yield "\n".join(found)
    yield "## Networks\n\nHyperparameters are set as `arch.NAME`, as in `--set arch.depth=16`."
    found = []
    for entry in registry().entries("architecture"):
        found.append(f"- `{entry.shown}`: {_plain(entry.summary)}")
        if not entry.is_family:
            params = net_params(registry().load("architecture", entry.name))
            if params.model_fields:
                found.append(textwrap.indent(_hyperparameters(params, params.model_fields), "  "))
    yield "\n".join(found)


if __name__ == "__main__":
    for path, content in itertools.chain(from_sources(), from_board()):
        path.write_bytes(content)
