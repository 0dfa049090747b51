"""Run the notebooks, check what they leave, and compare it with what is expected: ``snows reproduce``."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from snows_core.book.checks import KERNEL, Notebook, check_after, check_before, find_notebooks
from snows_core.book.expected import COLUMNS, FAILED, Expected, compare, load_expected
from snows_core.book.files_shown import CHECKOUT
from snows_core.book.page import DEFAULT_PROFILE, FIGURES_VARIABLE, figure_dir, figures_root
from snows_core.book.profiles import Profile, check_needs, load_profile, profiles_of
from snows_core.errors import SnowsError, invalid_argument, number, require_extra
from snows_core.files import try_to_write, write_text
from snows_core.provenance import provenance

LONGEST = 1e7  # seconds that a cell may be waited for: four months


@dataclass
class Run:
    """One notebook's run.

    Attributes:
        notebook: its name.
        profile: its profile.
        parameters: what was injected.
        seconds: how long it took.
        error: what went wrong in one sentence, or "".
        metrics: what it recorded.
        provenance: of its metrics; where it left none, of the run, without seed and images.
        verdicts: the comparison with what is expected.
    """

    notebook: str
    profile: str
    parameters: dict[str, Any]
    seconds: float = 0.0
    error: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    verdicts: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=COLUMNS))

    @property
    def failures(self) -> list[str]:
        """Every reason why this run is no success."""
        reasons = [self.error] if self.error else []
        for row in self.verdicts[self.verdicts["verdict"].isin(FAILED)].itertuples():
            came = "was not recorded" if row.verdict == "missing" else f"is {row.value:g}"
            reasons.append(f"{self.notebook}: {row.metric} {came}, expected {row.expected:g} within {row.tolerance:g}")
        return reasons

    @property
    def status(self) -> str:
        """Verdict of the run: "ok" or "failed"."""
        return "failed" if self.failures else "ok"

    def record(self) -> dict[str, Any]:
        """Return the run as what is written beside the executed notebook."""
        return {
            "notebook": self.notebook,
            "profile": self.profile,
            "parameters": self.parameters,
            "seconds": round(self.seconds, 1),
            "peak_memory_mb": self.provenance.get("peak_memory_mb"),
            "failures": self.failures,
            "verdicts": json.loads(self.verdicts.to_json(orient="records")),
            "provenance": self.provenance,
        }


@dataclass
class Summary:
    """All runs of one ``reproduce``.

    Attributes:
        runs: in order.
        interrupted: whether the user stopped it; notebooks after that did not run.
    """

    runs: list[Run] = field(default_factory=list)
    interrupted: bool = False

    @property
    def failures(self) -> list[str]:
        """Every reason why this is no success."""
        return [reason for run in self.runs for reason in run.failures]

    def metrics_table(self) -> pd.DataFrame:
        """Return one row a metric: value, expected value, tolerance, verdict."""
        filled = [run.verdicts for run in self.runs if len(run.verdicts)]
        return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=COLUMNS)

    def runs_table(self) -> pd.DataFrame:
        """Return one row a notebook: seconds, peak memory in MB, and whether all is well."""
        columns = ["notebook", "profile", "seconds", "peak_memory_mb", "status"]
        rows = [{**run.record(), "status": run.status} for run in self.runs]
        return pd.DataFrame(rows, columns=columns)


def notebooks_folder(folder: str | Path | None = None) -> Path:
    """Return the folder of the notebooks: the one given, or that of the checkout this package is installed from."""
    return Path(folder).resolve() if folder is not None else CHECKOUT / "notebooks"


def profiles_table(notebooks: str | Path | None = None) -> pd.DataFrame:
    """Return one row a notebook and profile: what it needs, in words.

    Args:
        notebooks: their folder; default that of the checkout.

    Returns:
        Columns notebook, profile, needs, description.
    """
    folder = notebooks_folder(notebooks)
    rows = []
    for notebook in find_notebooks(folder):
        for profile in profiles_of(notebook.stem, folder):
            loaded = load_profile(notebook.stem, profile, folder)
            rows.append((notebook.stem, profile, loaded.needs.sentence(), loaded.description))
    return pd.DataFrame(rows, columns=["notebook", "profile", "needs", "description"])


def reproduce(
    names: Iterable[str] = (),
    profile: str = DEFAULT_PROFILE,
    *,
    notebooks: str | Path | None = None,
    figures: str | Path | None = None,
    timeout: float | None = None,
    progress: bool = True,
    report: Callable[[str], None] = lambda line: None,
) -> Summary:
    """Run notebooks at one profile, each in its own kernel, and check figures and metrics.

    A notebook that fails leaves the others' results. Everything that can be checked without running (names, profile,
    kernel, parameters, what the machine has) is checked for all of them first.

    Args:
        names: numbers or names; none means all that have the profile.
        profile: "digits", or one that has a YAML in ``notebooks/profiles``.
        notebooks: their folder; default that of the checkout.
        figures: the folder of all figures; default ``SNOWS_FIGURES``, else ``figures/`` of the checkout. Executed
            notebooks and run records go to ``runs/`` beside it.
        timeout: seconds a cell may take; default three times the profile's time, at least ten minutes.
        progress: whether to show papermill's bar.
        report: called with one line before each notebook.

    Returns:
        The runs; ``failures`` is empty when all is well.

    Raises:
        SnowsError: on unknown names, profiles or parameters, a wrong kernel, or needs that are not met.
    """
    if timeout is not None:
        timeout = number("timeout", timeout, least=1, below=LONGEST)
    require_extra("book", "papermill", "ipykernel")
    folder = notebooks_folder(notebooks)
    root = Path(figures).resolve() if figures is not None else figures_root()
    plan = _plan(folder, tuple(names), profile)
    expected = load_expected(folder.parent / "figures" / "expected.yaml")
    _check_folders(root, plan, profile)
    summary = Summary()
    with _environment(root):
        for notebook, chosen in plan:
            report(f"{notebook.stem} ({profile}): {chosen.needs.sentence()}")
            run = Run(notebook.stem, profile, chosen.parameters, provenance=provenance(profile=profile))
            summary.runs.append(run)
            limit = timeout or max(600.0, 180 * (chosen.needs.minutes or 0.0))
            try:
                _run_one(notebook, run, root, limit, progress, expected)
            except KeyboardInterrupt:
                run.error = f"{notebook.stem}: interrupted after {run.seconds:.0f} s"
                summary.interrupted = True
                logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # that its kernel is gone is no news
            _write_record(run, root)
            if summary.interrupted:
                break
    return summary


def _check_folders(root: Path, plan: list[tuple[Notebook, Profile]], profile: str) -> None:
    """Try every folder that the runs will write, before the first of them begins."""
    for place in (root.parent / "runs", *(figure_dir(notebook.stem, profile, root) for notebook, _ in plan)):
        try:
            try_to_write(place)
        except (OSError, ValueError) as error:
            got = f"'{root}', as {place} cannot be written ({getattr(error, 'strerror', None) or error})"
            raise invalid_argument("figures", got, "a folder that can be written", "Choose another.") from error


def _plan(folder: Path, names: tuple[str, ...], profile: str) -> list[tuple[Notebook, Profile]]:
    """Choose notebooks and profiles, and refuse whatever cannot run."""
    found = find_notebooks(folder, names)
    if not names:
        known = sorted({p for notebook in found for p in profiles_of(notebook.stem, folder)})
        found = [notebook for notebook in found if profile in profiles_of(notebook.stem, folder)]
        if not found:
            raise invalid_argument("profile", f"'{profile}', which no notebook has", f"one of {', '.join(known)}")
    plan = [(notebook, load_profile(notebook.stem, profile, folder)) for notebook in found]
    for notebook, chosen in plan:
        check_before(notebook, chosen.parameters)
        check_needs(notebook.stem, profile, chosen.needs)
    return plan


def _run_one(notebook: Notebook, run: Run, root: Path, limit: float, progress: bool, expected: Expected) -> None:
    """Execute one notebook and fill its run; failures of the notebook end up in ``run.error``."""
    output = root.parent / "runs" / f"{run.notebook}-{run.profile}.ipynb"
    output.parent.mkdir(parents=True, exist_ok=True)
    started = time.time()
    try:
        _execute(notebook, output, run.parameters, limit, progress)
        record = check_after(figure_dir(run.notebook, run.profile, root), run.notebook, run.profile, started)
        run.metrics, run.provenance = record["metrics"], record["provenance"]
        wanted = expected.get(run.notebook, {}).get(run.profile, {})
        run.verdicts = compare(run.notebook, run.profile, run.metrics, wanted)
    except SnowsError as error:
        run.error = f"{run.notebook}: {error} The executed notebook is {output}"
    finally:
        run.seconds = time.time() - started


def _execute(notebook: Notebook, output: Path, parameters: dict[str, Any], limit: float, progress: bool) -> None:
    """Run papermill; turn whatever goes wrong in the kernel into one sentence with the cell's number."""
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    try:
        papermill.execute_notebook(
            str(notebook.path),
            str(output),
            parameters,
            kernel_name=KERNEL,
            cwd=str(notebook.path.parent),
            progress_bar=progress,
            execution_timeout=int(limit),
            start_timeout=120,
        )
    except PapermillExecutionError as error:
        injected = bool(parameters) and error.cell_index > notebook.tagged("parameters")[0]
        cell = error.cell_index + 1 - injected
        first = (error.evalue.strip().splitlines() or [""])[0]
        raise SnowsError(f"cell {cell} (In [{error.exec_count}]) failed: {error.ename}: {first}") from error
    except CellTimeoutError as error:
        raise SnowsError(f"a cell took longer than {limit:.0f} s; pass --timeout SECONDS to wait longer.") from error
    except DeadKernelError as error:
        raise SnowsError("the kernel died, most often because memory ran out.") from error
    except NoSuchKernel as error:
        raise SnowsError(f"Jupyter has no kernel '{KERNEL}' here; run: pip install 'snows-core[book]'") from error
    except Exception as error:  # of papermill, nbformat, a kernel that does not start: nothing else is to suffer
        reason = " ".join(str(error).split())[:300]
        raise SnowsError(f"it could not be run ({type(error).__name__}: {reason}).") from error


@contextmanager
def _environment(figures: Path) -> Iterator[None]:
    """Make ``python3`` mean this very interpreter for Jupyter, and tell the kernel where figures go.

    A kernel of the same name in the user's Jupyter folders may belong to another environment; a folder in
    ``JUPYTER_PATH`` comes before those. ``MPLBACKEND`` is unset, because Jupyter's own draws into the notebook.
    """
    from ipykernel.kernelspec import write_kernel_spec

    names = ("JUPYTER_PATH", FIGURES_VARIABLE, "MPLBACKEND")
    before = {name: os.environ.get(name) for name in names}
    with tempfile.TemporaryDirectory(prefix="snows-kernel-") as folder:
        write_kernel_spec(str(Path(folder) / "kernels" / KERNEL), extra_arguments=["--log-level=CRITICAL"])
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [folder, before["JUPYTER_PATH"]]))
        os.environ[FIGURES_VARIABLE] = str(figures)
        os.environ.pop("MPLBACKEND", None)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def _write_record(run: Run, root: Path) -> None:
    text = json.dumps(run.record(), indent=2, default=str) + "\n"
    write_text(root.parent / "runs" / f"{run.notebook}-{run.profile}.json", text)
