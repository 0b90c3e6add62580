"""The upkeep of a store: check what it holds, remove what nothing needs, pack and unpack results."""

from advbench.upkeep.archive import Imported, Packed, export, import_
from advbench.upkeep.garbage import Amount, collect_garbage
from advbench.upkeep.survey import Found, verify

__all__ = ["Amount", "Found", "Imported", "Packed", "collect_garbage", "export", "import_", "verify"]
