"""What pruned networks become for use elsewhere: smaller ones, and files that load without this package."""

from snows_core.export.compact import Compacted, compact
from snows_core.export.files import check_compact_target, save
from snows_core.export.hub import HubFolder, hub_folder
from snows_core.export.model_card import About
from snows_core.export.push import push_to_hub
from snows_core.export.weights import ExportedWeights, export_weights

__all__ = [
    "About",
    "Compacted",
    "ExportedWeights",
    "HubFolder",
    "check_compact_target",
    "compact",
    "export_weights",
    "hub_folder",
    "push_to_hub",
    "save",
]
