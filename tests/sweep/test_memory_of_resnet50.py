"""ResNet-50 at its real size, K = 30, on the CPU: what the heaviest layers take (issue: below 8 GB with 64 images)."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, timm, torch
import snows_core as snows
from snows_core.devices import peak_memory

torch.manual_seed(0)
model = timm.create_model("resnet50", zero_init_last=False).eval()
layers = ["layer1.0.conv2", "layer1.2.conv3"]
images = torch.randn(64, 3, 224, 224)
result = snows.prune(model, images, "2:4", k=30, layers=layers, steps=1, cg_iterations=1, progress=False)
rows = result.report.query("status == 'pruned'")
print(json.dumps({
    "peak": peak_memory(torch.device("cpu")), "memory": result.manifest["memory"], "k": list(rows["k"]),
    "products": list(rows["products"]), "start": list(rows["loss_start"]), "end": list(rows["loss_end"]),
}))
"""


@pytest.mark.slow
def test_resnet50_with_64_images_and_k_30_stays_below_8_gb():
    # The first blocks have the largest maps: their graphs and targets set the peak of a whole run.
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    found = json.loads(run.stdout.splitlines()[-1])
    print(found)
    assert found["k"] == [30] * 2 and all(count >= 1 for count in found["products"])
    assert all(end <= start for start, end in zip(found["start"], found["end"], strict=True))
    assert found["peak"] < 8e9
