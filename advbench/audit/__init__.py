"""Checks of whether an evaluation can be believed; `advbench.audit(model, x, y, threat)` runs them all."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from advbench.audit.findings import Audit as Audit
from advbench.audit.findings import Finding as Finding
from advbench.audit.findings import markdown as markdown
from advbench.audit.run import audit as audit


class _Callable(ModuleType):
    """A module that is called as the function of its name: `advbench.audit` is both."""

    def __call__(self, *args: Any, **values: Any) -> Audit:
        """As `audit`."""
        return audit(*args, **values)


sys.modules[__name__].__class__ = _Callable
