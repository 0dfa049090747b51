"""Looking on while the package works, and Ctrl-C at a chosen moment."""

import importlib

# The sweep calls this for every layer that it solves.
SOLVE = ("snows_core.sweep.sweep", "solve_layer")


def noted(monkeypatch, module, name):
    """Note what a function of a module is called with: the list fills with (args, kwargs)."""
    module = importlib.import_module(module)
    calls, original = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **kwargs: calls.append((args, kwargs)) or original(*args, **kwargs))
    return calls


def stop_after(monkeypatch, count):
    """Let Ctrl-C come after ``count`` solved layers; the list has one entry a layer solved."""
    module, name = importlib.import_module(SOLVE[0]), SOLVE[1]
    solve, calls = getattr(module, name), []

    def interrupted(*args, **kwargs):
        if len(calls) == count:
            raise KeyboardInterrupt
        calls.append(1)
        return solve(*args, **kwargs)

    monkeypatch.setattr(module, name, interrupted)
    return calls
