"""Checks whether an evaluation is credible; `advbench.audit(model, x, y, threat)` runs all of them."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from advbench.audit.findings import Audit as Audit
from advbench.audit.findings import Finding as Finding
from advbench.audit.findings import markdown as markdown
from advbench.audit.run import audit as audit


class _Callable(ModuleType):
    """A callable module: `advbench.audit` is both package and function."""

    def __call__(self, *args: Any, **values: Any) -> Audit:
        """Same as `advbench.audit.run.audit`."""
        return audit(*args, **values)


sys.modules[__name__].__class__ = _Callable
