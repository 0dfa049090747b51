"""Objectives with known minima: matrices of known condition, and any torch function as what Newton minimises."""

import math
from dataclasses import dataclass

import torch


def spd(n=12, seed=0, condition=100.0):
    """A symmetric positive definite matrix of known condition, and a right-hand side."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    values = torch.logspace(0, math.log10(condition), n, dtype=torch.float64)
    return q @ torch.diag(values) @ q.T, torch.randn(n, generator=generator, dtype=torch.float64)


@dataclass
class At:
    loss: float
    gradient: torch.Tensor
    product: object


class Function:
    """An objective made of any torch function; counts its evaluations and can lie about one of them."""

    def __init__(self, function, lie=None):
        self.function, self.lie, self.values, self.linearised = function, lie, 0, []

    def value(self, weight):
        self.values += 1
        return float(self.function(weight)) if self.lie is None else self.lie(weight)

    def linearise(self, weight):
        self.linearised.append(weight.clone())
        gradient = torch.func.grad(self.function)
        return At(
            float(self.function(weight)),
            gradient(weight),
            lambda v: torch.func.jvp(gradient, (weight,), (v,))[1],
        )


def quadratic(seed=0):
    matrix, b = spd(seed=seed)
    return Function(lambda w: 0.5 * w @ matrix @ w - b @ w), torch.linalg.solve(matrix, b)
