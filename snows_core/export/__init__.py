"""What pruned networks become for use elsewhere: smaller ones, and files that load without this package."""

from snows_core.export.compact import Compacted, compact
from snows_core.export.files import check_compact_target, save
from snows_core.export.int8 import Int8, compare_int8, to_int8

__all__ = ["Compacted", "Int8", "check_compact_target", "compact", "compare_int8", "save", "to_int8"]
