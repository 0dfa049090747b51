"""Importing the package's data and networks loads no library that is not used yet."""

import subprocess
import sys

HEAVY = ("timm", "torchvision", "sklearn", "pandas", "huggingface_hub", "seaborn", "matplotlib")
CODE = f"""
import sys
from snows_core.zoo import EXPERIMENTS, experiment
[row.dense_accuracy for row in EXPERIMENTS.values()]
assert experiment("resnet20").image_shape == (3, 32, 32)
print(*sorted(set(sys.modules) & set({HEAVY!r})))
"""


def test_heavy_libraries_wait_until_they_are_used():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
