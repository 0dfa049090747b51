"""The machinery behind the notebooks: their outputs, profiles, expected values, plots.

A name is loaded when it is first used: the command line reads profiles without a plotting library.
"""

import importlib
from typing import TYPE_CHECKING, Any

from snows_core.errors import require_extra

if TYPE_CHECKING:
    from snows_core.book import plots
    from snows_core.book.animations import animation
    from snows_core.book.contests.contest import (
        Tuned,
        adam_arm,
        arms,
        curves,
        fisher_arm,
        gradient_arm,
        layer_table,
        newton_arm,
        race,
        summary,
    )
    from snows_core.book.contests.contest_plot import draw_curves, draw_layers, draw_units
    from snows_core.book.contests.directions import direction_quality, mixed_direction
    from snows_core.book.contests.fits import LayerFit, image_gradients, layer_fits, layer_losses, split_images
    from snows_core.book.contests.meter import Meter, clock, seconds_of
    from snows_core.book.ctrl_c import ctrl_c_after
    from snows_core.book.family_tree import family_tree
    from snows_core.book.files_shown import say, shown_file
    from snows_core.book.kept_weights import LayerLoss, layer_loss
    from snows_core.book.lanczos import ritz_values
    from snows_core.book.method_picture import method_picture
    from snows_core.book.own_example import train_example, write_example_folder
    from snows_core.book.page import NotebookOutputs
    from snows_core.book.profiles import check_needs, load_profile
    from snows_core.book.published import published_resnet20
    from snows_core.book.records.real_networks import read_records, read_runs, record_missing, recorded_in
    from snows_core.book.records.recorded_grids import (
        by_update,
        count_improved,
        draw_grids,
        draw_updates,
        is_recorded,
        read_grids,
    )
    from snows_core.book.records.recorded_order import order_by_interval
    from snows_core.book.records.recorded_plot import draw_records, shown_table
    from snows_core.book.records.recorded_tables import recorded_table
    from snows_core.book.records.two_profiles import TwoProfiles
    from snows_core.book.repair_plot import draw_repairs
    from snows_core.book.segment_plot import draw_segment, segment_legend
    from snows_core.book.slider import slider

__all__ = [
    "LayerFit",
    "LayerLoss",
    "Meter",
    "NotebookOutputs",
    "Tuned",
    "TwoProfiles",
    "adam_arm",
    "animation",
    "arms",
    "by_update",
    "check_needs",
    "clock",
    "count_improved",
    "ctrl_c_after",
    "curves",
    "direction_quality",
    "draw_curves",
    "draw_grids",
    "draw_layers",
    "draw_records",
    "draw_repairs",
    "draw_segment",
    "draw_units",
    "draw_updates",
    "family_tree",
    "fisher_arm",
    "gradient_arm",
    "image_gradients",
    "is_recorded",
    "layer_fits",
    "layer_loss",
    "layer_losses",
    "layer_table",
    "load_profile",
    "method_picture",
    "mixed_direction",
    "newton_arm",
    "order_by_interval",
    "plots",
    "published_resnet20",
    "race",
    "read_grids",
    "read_records",
    "read_runs",
    "record_missing",
    "recorded_in",
    "recorded_table",
    "ritz_values",
    "say",
    "seconds_of",
    "segment_legend",
    "shown_file",
    "shown_table",
    "slider",
    "split_images",
    "summary",
    "train_example",
    "write_example_folder",
]

require_extra("book", "matplotlib", "seaborn", "yaml", "pydantic")

_PLACES = {
    **dict.fromkeys(("direction_quality", "mixed_direction"), "contests.directions"),
    **dict.fromkeys(("LayerFit", "image_gradients", "layer_fits", "layer_losses", "split_images"), "contests.fits"),
    **dict.fromkeys(("Meter", "clock", "seconds_of"), "contests.meter"),
    **dict.fromkeys(("Tuned", "adam_arm", "arms", "curves", "fisher_arm", "gradient_arm"), "contests.contest"),
    **dict.fromkeys(("layer_table", "newton_arm", "race", "summary"), "contests.contest"),
    **dict.fromkeys(("draw_curves", "draw_layers", "draw_units"), "contests.contest_plot"),
    "TwoProfiles": "records.two_profiles",
    "NotebookOutputs": "page",
    "animation": "animations",
    **dict.fromkeys(("say", "shown_file"), "files_shown"),
    **dict.fromkeys(("check_needs", "load_profile"), "profiles"),
    **dict.fromkeys(("read_records", "read_runs", "record_missing", "recorded_in"), "records.real_networks"),
    **dict.fromkeys(
        ("by_update", "count_improved", "draw_grids", "draw_updates", "is_recorded", "read_grids"),
        "records.recorded_grids",
    ),
    **dict.fromkeys(("draw_records", "shown_table"), "records.recorded_plot"),
    **dict.fromkeys(("draw_segment", "segment_legend"), "segment_plot"),
    "draw_repairs": "repair_plot",
    "order_by_interval": "records.recorded_order",
    "ctrl_c_after": "ctrl_c",
    "family_tree": "family_tree",
    **dict.fromkeys(("LayerLoss", "layer_loss"), "kept_weights"),
    "method_picture": "method_picture",
    "published_resnet20": "published",
    "recorded_table": "records.recorded_tables",
    "ritz_values": "lanczos",
    "slider": "slider",
    **dict.fromkeys(("train_example", "write_example_folder"), "own_example"),
}


def __getattr__(name: str) -> Any:
    """Load a public name of the notebooks when it is first asked for (PEP 562)."""
    if name in _PLACES:
        value = getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
        globals()[name] = value
        return value
    if name == "plots":
        return importlib.import_module(f"{__name__}.plots")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
