"""What pruned networks become for use elsewhere: smaller ones, and files that load without this package."""

from snows_core.export.compact import Compacted, compact
from snows_core.export.eligibility import Eligibility, checklist, eligibility
from snows_core.export.files import check_compact_target, save
from snows_core.export.int8 import Int8, compare_int8, to_int8
from snows_core.export.sizes import size_words, sizes
from snows_core.export.speed import Speed, compare_speed

__all__ = [
    "Compacted",
    "Eligibility",
    "Int8",
    "Speed",
    "check_compact_target",
    "checklist",
    "compact",
    "compare_int8",
    "compare_speed",
    "eligibility",
    "save",
    "size_words",
    "sizes",
    "to_int8",
]
