"""What pruned networks become for use elsewhere: smaller ones, and files that load without this package."""

from snows_core.export.compact import Compacted, compact
from snows_core.export.eligibility import Eligibility, checklist, eligibility
from snows_core.export.files import check_compact_target, save
from snows_core.export.sizes import size_words, sizes

__all__ = [
    "Compacted",
    "Eligibility",
    "check_compact_target",
    "checklist",
    "compact",
    "eligibility",
    "save",
    "size_words",
    "sizes",
]
