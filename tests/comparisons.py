"""The grid that tests of ``snows.compare`` share."""

QUICK = {"effort": "quick", "k": 1, "progress": False}
GRID = {"masks": ["magnitude", "wanda"], "updates": ["none", "layerwise"], "k": 1, "progress": False}
