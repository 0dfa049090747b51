"""What pruned networks become for use elsewhere: smaller ones, and files that load without this package."""

from snows_core.export.compact import Compacted, compact
from snows_core.export.files import check_compact_target, save
from snows_core.export.finetune import finetune
from snows_core.export.retraining import FinetuneOptions
from snows_core.export.semi_structured import Converted, to_semi_structured

__all__ = [
    "Compacted",
    "Converted",
    "FinetuneOptions",
    "check_compact_target",
    "compact",
    "finetune",
    "save",
    "to_semi_structured",
]
