"""What pruned networks become for use elsewhere: smaller ones, files that load without this package, checked."""

from snows_core.export.compaction.compact import Compacted, compact
from snows_core.export.compaction.speed import Speed, compare_speed
from snows_core.export.files import check_compact_target, save
from snows_core.export.hub.hub_folder import HubFolder, hub_folder
from snows_core.export.hub.model_card import About
from snows_core.export.hub.push import push_to_hub
from snows_core.export.kernels.eligibility import Eligibility, checklist, eligibility
from snows_core.export.kernels.semi_structured import Converted, to_semi_structured
from snows_core.export.onnx.export_onnx import OnnxExport, export_onnx
from snows_core.export.promise import METADATA_KEY, promise_of, support_digest
from snows_core.export.storage.int8 import Int8, compare_int8, to_int8
from snows_core.export.storage.sizes import size_words, sizes
from snows_core.export.tuning.finetune import finetune
from snows_core.export.tuning.retraining import FinetuneOptions
from snows_core.export.verification.findings import Verification
from snows_core.export.verification.verify import verify
from snows_core.export.weights import ExportedWeights, export_weights

__all__ = [
    "METADATA_KEY",
    "About",
    "Compacted",
    "Converted",
    "Eligibility",
    "ExportedWeights",
    "FinetuneOptions",
    "HubFolder",
    "Int8",
    "OnnxExport",
    "Speed",
    "Verification",
    "check_compact_target",
    "checklist",
    "compact",
    "compare_int8",
    "compare_speed",
    "eligibility",
    "export_onnx",
    "export_weights",
    "finetune",
    "hub_folder",
    "promise_of",
    "push_to_hub",
    "save",
    "size_words",
    "sizes",
    "support_digest",
    "to_int8",
    "to_semi_structured",
    "verify",
]
