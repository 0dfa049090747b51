"""A network as a graph of operations that can be cut, differentiated twice and copied."""

from snows_core.network.geometry import Geometry, geometry_of, patches
from snows_core.network.graph import Layer, Network, Segment
from snows_core.network.operations import Kind, tap_of
from snows_core.network.trace import trace

__all__ = [
    "Geometry",
    "Kind",
    "Layer",
    "Network",
    "Segment",
    "geometry_of",
    "patches",
    "tap_of",
    "trace",
]
