"""What a node of a graph calls and reads, with the types that torch.fx leaves open.

``fx.Node.target`` is a function or a text, and an argument of a node may be anything; which of them it is follows from
``node.op``. The functions here are the one place where that is known.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import fx, nn


def path_of(node: fx.Node) -> str:
    """Return the target of a node as text: a module's or parameter's qualified name, or the name of a method."""
    return str(node.target)


def called_function(node: fx.Node) -> Callable[..., Any]:
    """Return the function that a ``call_function`` node calls."""
    assert callable(node.target), node.op
    return node.target


def called_module(node: fx.Node) -> nn.Module:
    """Return the module that a ``call_module`` node runs."""
    owner = node.graph.owning_module
    assert node.op == "call_module" and owner is not None, node.op
    return owner.get_submodule(path_of(node))


def module_of(node: fx.Node) -> nn.Module | None:
    """Return the module that a ``call_module`` node runs, and None for any other node."""
    return called_module(node) if node.op == "call_module" else None


def name_of(node: fx.Node) -> str:
    """Return the name of the function, method or attribute that a node calls or reads."""
    if node.op == "call_method":
        return path_of(node)
    return str(node.args[1]) if node.target is getattr else getattr(node.target, "__name__", "")


def first_input(node: fx.Node) -> fx.Node:
    """Return the node whose value is the first argument of a node, for instance what a layer reads."""
    source = node.args[0]
    assert isinstance(source, fx.Node), source
    return source


def attribute_at(root: nn.Module, path: str) -> Any:
    """Return the parameter, buffer or other attribute of a module that a dotted path leads to."""
    return functools.reduce(getattr, path.split("."), root)
