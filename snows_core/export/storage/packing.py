"""Bytes of a weight matrix in the usual ways to store zeros, as formulas.

Symbols: ``w`` weights, of which ``k`` are kept; ``r`` rows (outputs) of the matrix; ``b`` bytes a value. Indices of
bits are packed without gaps and rounded up to whole bytes for each weight tensor.
"""

from __future__ import annotations

import math

INT16_COLUMNS = 2**15
"""Columns that a signed 16-bit index tells apart."""


def dense(w: int, b: int) -> int:
    """Return ``w b``: every weight is stored, zeros too."""
    return w * b


def group_packed(w: int, n: int, m: int, b: int) -> int:
    """Return ``n/m w b + n/m w ceil(log2 m) / 8``: ``n`` values of every ``m``, each with its place in the group.

    Args:
        w: weights, a multiple of ``m``.
        n: values stored of each group; a group with fewer kept ones stores zeros.
        m: weights of a group.
        b: bytes a value.

    >>> group_packed(64, 2, 4, 2)  # 32 values of 2 bytes, 32 places of 2 bits
    72
    """
    values = w // m * n
    return values * b + _bytes(values * math.ceil(math.log2(m)))


def group_packed_fewest(w: int, n: int, m: int, b: int) -> int:
    """Return ``n/m w b + w/m log2(C(m, n)) / 8``: as :func:`group_packed`, with all places together as one number.

    There are ``C(m, n)`` choices of ``n`` places among ``m``; no code that treats them alike needs fewer bits. Hardware
    does not read it.

    >>> group_packed_fewest(64, 2, 4, 2)  # 16 groups of log2(6) = 2.58 bits
    70
    """
    groups = w // m
    return groups * n * b + _bytes(math.ceil(groups * math.log2(math.comb(m, n))))


def compressed_rows(r: int, k: int, b: int, index: int) -> int:
    """Return ``k b + k index + 4 (r + 1)``: CSR with 32-bit row pointers.

    Args:
        r: rows.
        k: weights kept.
        b: bytes a value.
        index: bytes of a column index, 4 or 2.

    >>> compressed_rows(8, 32, 2, 4)
    228
    """
    return k * (b + index) + 4 * (r + 1)


def bitmap(w: int, k: int, b: int) -> int:
    """Return ``w / 8 + k b``: one bit a weight says whether it is kept, then the kept values.

    >>> bitmap(64, 32, 2)
    72
    """
    return _bytes(w) + k * b


def _bytes(bits: int) -> int:
    return -(-bits // 8)
