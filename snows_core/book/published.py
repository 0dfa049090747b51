"""Accuracies that others published, to stand beside ours; none of these numbers is a result of this project."""

from __future__ import annotations

import pandas as pd

DENSE = 91.36
"""Accuracy (%) of the dense network of ``published_resnet20``."""


def published_resnet20() -> pd.DataFrame:
    """Return one-shot accuracies of ResNet-20 on CIFAR-10, global masks on all convolutions and the classifier.

    Source: Benbaki et al., "Fast as CHITA: Neural Network Pruning with Combinatorial Optimization", ICML 2023, whose
    dense network has 91.36 %. The numbers are recalled from the literature, and were not read again.

    Returns:
        Accuracy (%) by sparsity (index) and method (columns).

    >>> float(published_resnet20().loc[0.8, "magnitude"])
    54.01
    """
    return pd.DataFrame(
        {
            "magnitude": [88.44, 85.24, 78.79, 54.01, 11.79],
            "WoodFisher": [90.23, 87.96, 81.05, 62.63, 11.49],
            "CBS": [90.58, 88.88, 81.84, 51.28, 13.68],
            "CHITA": [90.60, 89.22, 84.12, 57.90, 15.60],
            "CHITA++ (multi-stage)": [91.04, 90.78, 90.38, 88.72, 79.32],
        },
        index=pd.Index([0.5, 0.6, 0.7, 0.8, 0.9], name="sparsity"),
    )
