"""What pruned networks become for use elsewhere: smaller ones, and files that load without this package."""

from snows_core.export.compact import Compacted, compact
from snows_core.export.files import check_compact_target, save
from snows_core.export.onnx import OnnxExport, export_onnx

__all__ = ["Compacted", "OnnxExport", "check_compact_target", "compact", "export_onnx", "save"]
