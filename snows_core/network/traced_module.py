"""A traced network of which nothing stays when it is not needed any more: neither weights nor source text.

A ``fx.GraphModule`` and its graph hold each other, so that the weights stay until Python looks for such circles, which
in a large process it seldom does; and torch.fx keeps the source text that it compiles for a graph for ever. In a loop
of calls both would add up: a copy of all weights, and a line of text for every operation, with each call.
"""

from __future__ import annotations

import linecache
import weakref

from torch import fx
from torch.fx import graph_module as of_torch
from torch.fx.graph import PythonCode


class TracedModule(fx.GraphModule):
    """A graph over the weights of a network, whose source text goes with it.

    Args:
        root: the network that was traced.
        graph: what was recorded.
    """

    def recompile(self) -> PythonCode:
        """Compile the graph's code, as torch.fx does after a change of the graph."""
        compiled = super().recompile()
        weakref.finalize(self, _forget_text, type(self).forward.__code__.co_filename).atexit = False
        return compiled


def release_with(user: object, module: fx.GraphModule) -> None:
    """Let a traced network go as soon as its only user is gone: its graph forgets it then.

    Args:
        user: who holds the network, and does not stand in a circle of objects.
        module: the network; in use no longer than ``user`` is there.
    """
    weakref.finalize(user, setattr, module.graph, "owning_module", None).atexit = False


def _forget_text(name: str) -> None:
    """Drop the source text of a made-up file name, under which torch.fx and tracebacks would find it."""
    linecache.cache.pop(name, None)
    loader = getattr(of_torch, "_loader", None)  # private: another version of PyTorch may do without
    getattr(loader, "eval_cache", {}).pop(name, None)
