"""The list of the CIFAR-10 images that results stand on, made from their image-folder tree.

    python tools/cifar_subset.py DATA            write snows_core/zoo/cifar10_subset.safetensors
    python tools/cifar_subset.py DATA --check    only say whether the file is that of this tree (exit code 1 if not)

DATA is the folder of all data sets, with cifar10/{train,test}/<class>/* in it; the images must be in a lossless
format. ``snows_core/zoo/cifar_subset.py`` describes the file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from snows_core.zoo.cifar import CIFAR10_CLASSES
from snows_core.zoo.cifar_subset import FILE, PARTS, Listed, pixel_digest, read_list, write_list
from snows_core.zoo.folder import labelled_samples
from snows_core.zoo.image_modes import read_image


def listed(root: Path) -> dict[str, list[Listed]]:
    """Return digest and label of every image of the tree in a folder of data sets, in the tree's order."""
    labels = {name: label for label, name in enumerate(CIFAR10_CLASSES)}
    return {
        part: [
            (pixel_digest(np.asarray(read_image(path, "RGB"))), label)
            for path, label in labelled_samples(root / "cifar10" / part, labels)
        ]
        for part in PARTS
    }


def main() -> int:
    """Read the options and do it; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", type=Path, help="folder of all data sets")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 when the file is another")
    options = parser.parse_args()
    found = listed(options.root)
    if options.check:
        same = read_list() == found
        print(f"{FILE.name} is {'' if same else 'not '}that of this tree")
        return int(not same)
    write_list(found, FILE)
    images = [image for part in PARTS for image in found[part]]
    repeated = len(images) - len({digest for digest, _ in images})
    print(f"{len(found['train']):,} training and {len(found['test']):,} test images, {repeated} with pixels of another")
    return 0


if __name__ == "__main__":
    sys.exit(main())
