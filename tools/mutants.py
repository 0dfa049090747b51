"""Break the package on purpose, one small change at a time, and see whether the tests notice.

    python tools/mutants.py --seed 0 --count 60

Changes ("mutants") are made from the syntax tree of the files below: operators, comparisons, constants, conditions,
dropped statements and keywords, swapped arguments, transposes taken away, an operand in place of a result. A seed
chooses among them, as many from each room. Each is written into a copy of the package in a temporary folder, never into
the working tree, and the tests of its file, its doctests among them, run against that copy; a failure, an error or no
end (in 120 seconds, or four times what the tests take) kills it. What survives is printed, and written to
``runs/mutants.md``. Survivors that are equivalent, or cost time or memory alone, stand in
``tests/mutants_survivors.md``, each with its reason.

Not made, as no number or decision depends on them: messages, texts, annotations, assertions, progress bars, estimates
of time, and constants that only say how much is computed at a time; nor what only a GPU can tell (lines that name CUDA
or pinned memory). Needs a system with fork (Linux, macOS).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import queue
import random
import re
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mutant_tests import TESTS
from mutations import Mutant, mutants_of

ROOT = Path(__file__).resolve().parent.parent
KNOWN = ROOT / "tests" / "mutants_survivors.md"
SECONDS = 120.0
MOST_SURVIVORS = 0.05
T, R = TypeVar("T"), TypeVar("R")
# Loaded once, before any copy of the package: every mutant begins from there.
PRELOAD = ["torch", "torchvision", "timm", "pytest", "hypothesis", "scipy.sparse.linalg", "pandas", "curvlinops"]


@dataclass
class Verdict:
    """What became of a mutant."""

    mutant: Mutant
    killed: bool
    seconds: float


def chosen(seed: int, count: int, only: Sequence[str] = ()) -> list[Mutant]:
    """Choose mutants, as many from each room, one a line at most.

    Args:
        seed: of the choice.
        count: how many.
        only: names of files without their ending; default all.

    Returns:
        Mutants, in the order of rooms and files.
    """
    lot, pools = random.Random(seed), []
    for room, files in TESTS.items():
        names = [name for name in files if not only or name in only]
        pool = [m for name in names for m in mutants_of(ROOT / "snows_core" / room / f"{name}.py")]
        lot.shuffle(pool)
        pools.append(list({(m.file, m.line): m for m in pool}.values()))
    taken: list[Mutant] = []
    while len(taken) < count and any(pools):
        for pool in filter(None, pools):
            if len(taken) < count:
                taken.append(pool.pop())
    order = {name: i for i, name in enumerate(name for files in TESTS.values() for name in files)}
    return sorted(taken, key=lambda m: (order[m.name], m.line))


def tests_of(file: str) -> list[str]:
    """Return the test files of a file of the package, that of numbers that were measured, and its own doctests."""
    listed = TESTS[Path(file).parent.name][Path(file).stem]
    found = [str(Path("tests", test).with_name(f"test_{Path(test).name}.py")) for test in listed.split()]
    found.append(str(Path("tests", "test_measured_choices.py")))
    own = Path("snows_core", file)
    return [*found, str(own)] if ">>>" in (ROOT / own).read_text() else found


def copy_of_the_project(folder: Path) -> Path:
    """Copy what tests need: package, tests, settings."""
    for part in ("snows_core", "tests", "tools"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def _suite(folder: str, tests: list[str], log: str) -> None:
    """Run test files against the copy in ``folder``; the body of a process of its own."""
    os.chdir(folder)
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = True
    import pytest

    code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))
    package = sys.modules.get("snows_core")
    if package is not None and not str(package.__file__).startswith(folder):
        code = 98
    sys.stdout.flush()
    os._exit(code)


def passes(context: multiprocessing.context.BaseContext, folder: Path, tests: list[str], limit: float) -> bool:
    """Run tests on the copy in ``folder``, in a process of their own.

    Returns:
        Whether all passed in time.

    Raises:
        RuntimeError: when they cannot tell: no tests, or another package than the copy.
    """
    log = folder / "log.txt"
    process = context.Process(target=_suite, args=(str(folder), tests, str(log)))
    process.start()
    process.join(limit)
    if process.is_alive():
        process.kill()
        process.join()
        return False
    if process.exitcode in (4, 5, 98):
        raise RuntimeError(f"the tests did not run on the copy (exit {process.exitcode}):\n{log.read_text()[-2000:]}")
    return process.exitcode == 0


class Bench:
    """Copies of the project, and processes that run tests on them, a few side by side.

    Args:
        home: folder for the copies.
        workers: how many.
    """

    def __init__(self, home: Path, workers: int) -> None:
        os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOAD)
        self.seconds: dict[str, float] = {}
        self.folders = [copy_of_the_project(home / str(i)) for i in range(workers)]

    def map(self, job: Callable[[Path, T], R], items: Sequence[T]) -> Iterator[R]:
        """Yield what ``job(folder, item)`` returns, as it comes; its first error ends all."""
        waiting: queue.SimpleQueue[T] = queue.SimpleQueue()
        done: queue.SimpleQueue[R | BaseException] = queue.SimpleQueue()
        for item in items:
            waiting.put(item)

        def work(folder: Path) -> None:
            try:
                while True:
                    done.put(job(folder, waiting.get_nowait()))
            except queue.Empty:
                pass
            except BaseException as error:
                done.put(error)

        for folder in self.folders:
            threading.Thread(target=work, args=(folder,), daemon=True).start()
        for _ in items:
            result = done.get()
            if isinstance(result, BaseException):
                raise result
            yield result

    def unchanged(self, folder: Path, test: str) -> tuple[str, float]:
        """Run one test file on the package as it is.

        Returns:
            Its name, and how long it took.

        Raises:
            RuntimeError: when it fails.
        """
        start = time.perf_counter()
        if not passes(self.context, folder, [test], 10 * SECONDS):
            raise RuntimeError(f"{test} fails on the unchanged package:\n{(folder / 'log.txt').read_text()[-2000:]}")
        self.seconds[test] = time.perf_counter() - start
        return test, self.seconds[test]

    def judge(self, folder: Path, mutant: Mutant) -> Verdict:
        """Run a mutant's tests against it."""
        target, start = folder / "snows_core" / mutant.file, time.perf_counter()
        original = target.read_text()
        target.write_text(mutant.applied(original))
        tests = tests_of(mutant.file)
        limit = max(SECONDS, 4 * sum(self.seconds.get(test, 0.0) for test in tests))
        try:
            passed = passes(self.context, folder, tests, limit)
        finally:
            target.write_text(original)
        return Verdict(mutant, not passed, time.perf_counter() - start)


def explained(mutant: Mutant) -> bool:
    """Tell whether a mutant stands among the survivors that have a reason."""
    text = KNOWN.read_text() if KNOWN.exists() else ""
    return f"`{mutant.file}`" in text and any(
        f"`{mutant.file}`" in line and f"`{mutant.change}`" in re.sub(r"\\\|", "|", line) for line in text.splitlines()
    )


def report(verdicts: list[Verdict], seed: int) -> str:
    """Return a table of files, and the survivors."""
    killed = Counter(v.mutant.file for v in verdicts if v.killed)
    survivors = sorted((v.mutant for v in verdicts if not v.killed), key=lambda m: (m.file, m.line))
    lines = [f"# Mutants of seed {seed}", "", "| file | killed | survived |", "|---|---|---|"]
    for file in dict.fromkeys(v.mutant.file for v in verdicts):
        lines.append(f"| {file} | {killed[file]} | {sum(m.file == file for m in survivors)} |")
    lines += ["", f"{len(verdicts) - len(survivors)} of {len(verdicts)} killed. Survivors:", ""]
    for mutant in survivors:
        lines.append(f"- `{mutant.file}`:{mutant.line} `{mutant.change}`" + (" (listed)" if explained(mutant) else ""))
    return "\n".join(lines) + "\n"


def main() -> int:
    """Read the command line and run.

    Returns:
        1 when more than one mutant in twenty survives, else 0.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[], help="files without their ending, for instance: lowest stream")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "mutants.md")
    options = parser.parse_args()
    mutants = chosen(options.seed, options.count, options.only)
    if options.list:
        print(*(f"{m.file}:{m.line} {m.change}" for m in mutants), sep="\n")
        return 0
    verdicts = []
    with tempfile.TemporaryDirectory() as home:
        bench = Bench(Path(os.path.realpath(home)), options.workers)
        every = list(dict.fromkeys(test for mutant in mutants for test in tests_of(mutant.file)))
        for test, seconds in bench.map(bench.unchanged, every):
            print(f"passes   {seconds:5.0f} s  {test}", flush=True)
        for verdict in bench.map(bench.judge, mutants):
            verdicts.append(verdict)
            word, mutant = "killed  " if verdict.killed else "SURVIVED", verdict.mutant
            print(f"{word} {verdict.seconds:5.0f} s  {mutant.file}:{mutant.line}  {mutant.change}", flush=True)
    text = report(verdicts, options.seed)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text)
    print(text)
    return int(sum(not v.killed for v in verdicts) > MOST_SURVIVORS * len(verdicts))


if __name__ == "__main__":
    sys.exit(main())
