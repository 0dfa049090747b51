"""Looking on while the package works, and Ctrl-C at a chosen moment."""

import importlib

from snows_core.methods.snows import Snows


def noted(monkeypatch, module, name):
    """Note what a function of a module is called with: the list fills with (args, kwargs)."""
    module = importlib.import_module(module)
    calls, original = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **kwargs: calls.append((args, kwargs)) or original(*args, **kwargs))
    return calls


def stop_after(monkeypatch, count):
    """Let Ctrl-C come after ``count`` solved layers; return the problems solved so far, as they come."""
    solve, done = Snows.solve, []

    def interrupted(method, problem):
        if len(done) == count:
            raise KeyboardInterrupt
        done.append(problem)
        return solve(method, problem)

    monkeypatch.setattr(Snows, "solve", interrupted)
    return done
