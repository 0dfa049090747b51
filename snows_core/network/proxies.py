"""Symbolic values of a traced forward pass: they answer for their shapes and record in-place work.

What may be asked of a value (``if x:``, ``len(x)``, ``x.shape``) is passed on to the tracer
(:class:`snows_core.network.tracer.Tracer`), which knows shapes where there is an example.
"""

from __future__ import annotations

import dis
import operator
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, cast

from torch import fx

IN_PLACE = tuple("iadd isub imul itruediv ifloordiv imod ipow iand ior ixor ilshift irshift".split())
"""In-place operators, by their names in Python's module ``operator``."""


class Undecided(fx.proxy.TraceError, TypeError):
    """A forward pass asked for something that is not known before the numbers are."""


class Again(BaseException):
    """Tracing has to start again, with something more recorded. No Exception, so that no forward pass catches it."""


class AskedForNumber(Again):
    """``int``, ``float`` or ``len`` of a value that depends on the number of images: to be recorded, not answered."""

    def __init__(self, name: str, namespace: dict[str, Any]) -> None:
        super().__init__(name)
        self.name, self.namespace = name, namespace


class WritesIntoBuffer(Again):
    """A buffer is written into by what was recorded: its readers have to be recorded, too."""


class Sizes(tuple[Any, ...]):
    """A shape whose entries are numbers, or symbolic values where they depend on the number of images."""

    def numel(self) -> Any:
        """Return the product of the entries, as ``torch.Size.numel``."""
        result: Any = 1
        for entry in self:
            result = result * entry
        return result

    def __getitem__(self, index: Any) -> Any:
        entry = super().__getitem__(index)
        return Sizes(entry) if isinstance(index, slice) else entry

    def __add__(self, other: Any) -> Sizes:
        return Sizes(tuple(self) + tuple(other))


def _in_place(name: str) -> Callable[[Any, Any], Any]:
    def record(self: Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", getattr(operator, name), (self, other), {})

    return record


class Proxy(fx.Proxy):
    """A symbolic value that knows its shape, and records in-place work (torch.fx would record ``x += y`` as a sum)."""

    tracer: Any  # an AnsweringTracer, which is built on this file

    def __getattr__(self, k: str) -> Any:
        if k in ("_is_param", "_is_buffer"):
            return False
        return self.tracer.attribute(self, k)

    @property  # type: ignore[misc] # a property that nobody sets, where object has an attribute
    def __class__(self) -> type:  # what isinstance sees
        return self.tracer.kind_of_value(self) or type(self)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __iter__(self) -> Iterator[Any]:  # that of torch.fx leaves its caller's frames, and all they hold, in a circle
        count, value = _unpacked_into(sys._getframe(1)), cast(Any, self)
        return self.tracer.iter(self) if count is None else iter([value[i] for i in range(count)])

    def __len__(self) -> int:
        return self.tracer.number(self, "len")

    def __index__(self) -> int:
        return self.tracer.number(self, "index")

    def __int__(self) -> int:
        return self.tracer.number(self, "int")

    def __float__(self) -> float:
        return self.tracer.number(self, "float")

    def __contains__(self, item: Any) -> bool:
        return self.tracer.contains(self, item)


for _name in IN_PLACE:
    setattr(Proxy, f"__{_name}__", _in_place(_name))


class Attribute(Proxy, fx.proxy.Attribute):
    """An attribute or method of a symbolic value, recorded once it is used."""

    @property
    def node(self) -> fx.Node:  # type: ignore[override] # as in torch.fx: there is no node before it is used
        """Record reading the attribute, once (again if the module that read it first was taken back)."""
        if self._node is None or is_erased(self._node):
            self._node = self.tracer.create_proxy("call_function", getattr, (self.root, self.attr), {}).node
        return self._node

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Record the method call."""
        return self.tracer.call_method(self.root, self.attr, args, kwargs)


def _unpacked_into(frame: FrameType) -> int | None:
    """Return into how many names a frame is just taking a value apart (``q, k, v = x``), or None where it does not."""
    now = next(step for step in dis.get_instructions(frame.f_code) if step.offset >= frame.f_lasti)
    return int(now.argval) if now.opname == "UNPACK_SEQUENCE" else None


def parts_of(value: Any) -> Iterator[Any]:
    """Yield the values inside of lists, tuples, dictionaries and slices."""
    if isinstance(value, slice):
        yield from (value.start, value.stop, value.step)
    elif type(value) in (tuple, list, Sizes):
        for part in value:
            yield from parts_of(part)
    elif type(value) is dict:
        yield from parts_of(list(value.values()))
    else:
        yield value


def is_erased(node: fx.Node) -> bool:
    """Tell whether a node was taken out of its graph again."""
    return bool(getattr(node, "_erased", False))


def is_symbolic(*values: Any) -> bool:
    """Tell whether there is a symbolic value among values, or inside of them."""
    return any(issubclass(type(part), fx.Proxy) for part in parts_of(values))
