"""Small animations of the book: each is computed from seeds, drawn frame by frame, and kept in ``figures/animations``.

A file a topic computes and draws; ``encode`` makes animated PNGs and strips of them, which notebooks show by
:func:`animation`; ``python -m snows_core.book.animations`` writes them anew.
"""

from snows_core.book.animations.show import animation

__all__ = ["animation"]
