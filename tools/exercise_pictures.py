"""The pictures that exercises should end in, taken from the committed solutions to figures/exercises/.

    python tools/exercise_pictures.py            all of them
    python tools/exercise_pictures.py 03 02b     of some notebooks
    python tools/exercise_pictures.py --check    only say which differ (exit code 1)

It is the first picture under the heading "Exercise N" of a solution. Notebooks show it by ``page.show_expected``.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADING = re.compile(r"^#+ Exercise (\d+)\b", re.MULTILINE)


def pictures(solution: Path) -> dict[str, bytes]:
    """Return the PNGs that the exercises of one notebook end in.

    Args:
        solution: an executed notebook of solutions.

    Returns:
        "exercise-1" and so on to the file's bytes.
    """
    found: dict[str, bytes] = {}
    current = ""
    for cell in json.loads(solution.read_text(encoding="utf-8"))["cells"]:
        headings = HEADING.findall("".join(cell["source"])) if cell["cell_type"] == "markdown" else []
        current = f"exercise-{headings[-1]}" if headings else current
        for output in cell.get("outputs", []):
            data = output.get("data", {}).get("image/png")
            if data and current and current not in found:
                found[current] = base64.b64decode("".join(data))
    return found


def update(root: Path, names: list[str], check: bool = False) -> list[str]:
    """Write the pictures of some notebooks, and remove those that no solution draws.

    Args:
        root: the checkout.
        names: numbers or names of notebooks; none means all.
        check: write nothing.

    Returns:
        The files that changed, or with ``check`` would change.
    """
    changed = []
    for solution in sorted((root / "notebooks" / "solutions").glob("[0-9]*.ipynb")):
        if names and solution.stem not in names and solution.stem.split("_")[0] not in names:
            continue
        folder, wanted = root / "figures" / "exercises" / solution.stem, pictures(solution)
        for path in {*folder.glob("*.png"), *(folder / f"{name}.png" for name in wanted)}:
            new = wanted.get(path.stem)
            if path.is_file() and path.read_bytes() == new:
                continue
            changed.append(path.relative_to(root).as_posix())
            if check:
                continue
            if new is None:
                path.unlink()
            else:
                folder.mkdir(parents=True, exist_ok=True)
                path.write_bytes(new)
    return sorted(changed)


def main() -> int:
    """Read the options and do it; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 when a picture differs")
    parser.add_argument("names", nargs="*", help="numbers or names of notebooks; default: all")
    options = parser.parse_args()
    changed = update(ROOT, options.names, options.check)
    for path in changed:
        print(path, file=sys.stderr if options.check else sys.stdout)
    return int(options.check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
