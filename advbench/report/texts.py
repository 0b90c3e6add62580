"""Numbers and names as people read them."""

from __future__ import annotations

import math
import re
from typing import Any

import pandas as pd


def format_eps(eps: float) -> str:
    """A radius as people write it: `8/255` where it is a whole number of grey levels, else decimal."""
    levels = eps * 255
    if 0 < levels < math.inf and abs(levels - round(levels)) < 1e-9 and f"{eps:.3g}" != f"{eps:.9g}":
        return f"{round(levels)}/255"
    return f"{eps:.4g}"


def accuracy_text(record: dict[str, Any], name: str, absent: str = "failed") -> str:
    """An accuracy with its interval, and its deviation over seeds; another word where there is none."""
    value = record.get(name, math.nan)
    if math.isnan(value):
        return absent
    text = f"{value:.3f} [{record[name + '_low']:.3f}, {record[name + '_high']:.3f}]"
    deviation = record.get(name + "_sd", math.nan)
    return text if math.isnan(deviation) else f"{text} sd {deviation:.3f}"


def number_text(value: float) -> str:
    """A number with three decimals, or n/a."""
    return "n/a" if math.isnan(value) else f"{value:.3f}"


def count_text(value: Any) -> str:
    """A whole number, or n/a."""
    return "n/a" if pd.isna(value) else f"{value:,.0f}"


def short_name(name: str) -> str:
    """A name that leaves room for a figure."""
    return name if len(name) <= 24 else f"{name[:14]}…{name[-9:]}"


def escape(text: str) -> str:
    """Text that Markdown and HTML show as it is, in one line."""
    text = " ".join(text.split()).replace("&", "&amp;")
    for character in "\\`*_[]<>|":
        text = text.replace(character, "&lt;" if character == "<" else f"\\{character}")
    return text


def escape_cell(text: str) -> str:
    """Likewise in a cell of a table, where brackets around numbers and underscores within words need no escape."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("](", "]\\(")
    return re.sub(r"[`*|\\](?!\()|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)
