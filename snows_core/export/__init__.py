"""What pruned networks become for use elsewhere: smaller ones, files that load without this package, checked."""

from snows_core.export.compact import Compacted, compact
from snows_core.export.files import check_compact_target, save
from snows_core.export.promise import METADATA_KEY, promise_of, support_digest
from snows_core.export.verification import Verification
from snows_core.export.verify import verify

__all__ = [
    "METADATA_KEY",
    "Compacted",
    "Verification",
    "check_compact_target",
    "compact",
    "promise_of",
    "save",
    "support_digest",
    "verify",
]
