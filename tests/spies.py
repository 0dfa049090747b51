"""Looking on while the package works, and Ctrl-C at a chosen moment."""

import importlib

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
