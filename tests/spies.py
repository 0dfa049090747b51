"""Looking on while the package works, and Ctrl-C at a chosen moment."""

import importlib
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from snows_core.methods import BetweenStages
from snows_core.methods.snows import Snows


def noted(monkeypatch, module, name):
    """Note what a function of a module is called with: the list fills with (args, kwargs)."""
    module = importlib.import_module(module)
    calls, original = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **kwargs: calls.append((args, kwargs)) or original(*args, **kwargs))
    return calls


def stop_after(monkeypatch, count):
    """Let Ctrl-C come after ``count`` solved layers; return the problems solved so far, as they come."""
    done = []

    def interrupting(solve):
        def interrupted(method, problem):
            if len(done) == count:
                raise KeyboardInterrupt
            done.append(problem)
            return solve(method, problem)

        return interrupted

    for method in (Snows, BetweenStages):
        monkeypatch.setattr(method, "solve", interrupting(method.solve))
    return done


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made in its block and still held, whoever holds them.

    Attributes:
        most: the largest number so far.
    """

    def __init__(self):
        super().__init__()
        self.held, self.now, self.most = set(), 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self._note(value.untyped_storage())
        return result

    def _note(self, storage):
        if storage._cdata not in self.held:
            self.held.add(storage._cdata)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())

    def _gone(self, storage, size):
        self.held.discard(storage)
        self.now -= size
