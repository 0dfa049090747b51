"""What pruned networks become for use elsewhere: smaller ones, and files that load without this package."""

from snows_core.export.compact import Compacted, compact
from snows_core.export.files import check_compact_target, save
from snows_core.export.int8 import Int8, compare_int8, to_int8
from snows_core.export.speed import Speed, compare_speed

__all__ = [
    "Compacted",
    "Int8",
    "Speed",
    "check_compact_target",
    "compact",
    "compare_int8",
    "compare_speed",
    "save",
    "to_int8",
]
