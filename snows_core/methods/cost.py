"""What a method costs: a formula that people read in the table of methods, and that is evaluated for their layer.

A formula is a sum of terms, each a product of numbers and symbols, as in ``n d^2 + o k^3 / 6 (factors)``. Behind a
semicolon stand words. A number or symbol counts multiply-adds; the words in brackets say at which of three rates a
machine does them:

- nothing: products of matrices;
- ``(factors)``: Cholesky factors, inverses and eigenvectors, which take a few times as long;
- ``(passes)``: steps that read a number from memory for each multiply-add: products with vectors, sums, sorts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from snows_core.errors import invalid_argument

SYMBOLS: Mapping[str, str] = {
    "n": "images times output positions of the layer; of the whole network: images",
    "g": "groups of the layer, 1 unless it is a grouped convolution",
    "o": "output rows of the layer; of the whole network: its outputs",
    "d": "inputs of a row",
    "k": "kept inputs of a row",
    "f": "a pass of all images forward through the layer and the K operations behind it, or through the whole network",
    "p": "weights of the whole network that may go",
    "u": "units of the whole network that may go: channels, neurons and heads",
}
"""Symbol of a formula to what it stands for."""

_TERM = re.compile(r"(?P<product>[^()]+?)(?: \((?P<rate>factors|passes)\))?")
_FACTOR = re.compile(r"(?P<over>/ )?(?:(?P<number>[0-9.,]+)|(?P<symbol>[a-z]))(?:\^(?P<power>[0-9]))?")


class Rates(NamedTuple):
    """What a machine does in a second, in multiply-adds.

    Attributes:
        products: in products of matrices.
        factors: in Cholesky factors.
        passes: in products of matrices with vectors.
    """

    products: float
    factors: float
    passes: float


class Work(NamedTuple):
    """Multiply-adds, by the rate at which they are done.

    Attributes:
        products: in products of matrices.
        factors: in Cholesky factors, inverses and eigenvectors.
        passes: in steps that read a number for each of them.
    """

    products: float
    factors: float
    passes: float

    @property
    def total(self) -> float:
        """All of them."""
        return math.fsum(self)

    def seconds(self, rates: Rates) -> float:
        """Return the seconds that they take one after the other at some ``rates``.

        >>> Work(4.0, 2.0, 1.0).seconds(Rates(2.0, 1.0, 0.5))
        6.0
        """
        return math.fsum(amount / rate for amount, rate in zip(self, rates, strict=True))


def multiply_adds(cost: str, **sizes: float) -> Work:
    """Evaluate the formula of a method's cost.

    Args:
        cost: the formula, as :func:`snows_core.methods.methods` shows it.
        **sizes: what its symbols stand for, see :data:`SYMBOLS`; one that is not needed is passed over.

    Returns:
        The multiply-adds.

    Raises:
        SnowsError: on a text that is no formula, or a symbol without a size.

    >>> multiply_adds("n d^2 + o k^3 / 6 (factors); in words", n=10, d=2, o=3, k=4)
    Work(products=40.0, factors=32.0, passes=0.0)
    """
    amounts = dict.fromkeys(Work._fields, 0.0)
    for text in cost.partition(";")[0].split(" + "):
        term = _TERM.fullmatch(text)
        if term is None:
            raise invalid_argument("cost", f"the term '{text}'", "as in 'o k^3 / 6 (factors)'")
        amounts[term["rate"] or "products"] += _product(term["product"], sizes)
    return Work(**amounts)


def _product(text: str, sizes: Mapping[str, float]) -> float:
    """Return the value of one term."""
    value, place = 1.0, 0
    while place < len(text):
        found = _FACTOR.match(text, place)
        if found is None or text[found.end() : found.end() + 1] not in ("", " "):
            expected = "numbers, symbols and powers with blanks between, as in '300 o d^2'"
            raise invalid_argument("cost", f"'{text[place:]}' in the term '{text}'", expected)
        symbol = found["symbol"]
        if symbol and symbol not in sizes:
            raise invalid_argument("cost", f"the symbol '{symbol}' without a size", f"a number for it in '{text}'")
        factor = float(sizes[symbol] if symbol else found["number"].replace(",", "")) ** int(found["power"] or 1)
        value = value / factor if found["over"] else value * factor
        place = found.end() + 1
    return value
