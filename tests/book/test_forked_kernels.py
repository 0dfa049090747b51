"""The tests' own kernels: each is fresh, begins where it was asked to, and is seen to hang and to die."""

import forked_kernels
import nbformat
import papermill
import pytest
from nbclient.exceptions import CellTimeoutError, DeadKernelError

pytestmark = pytest.mark.skipif(not forked_kernels.available(), reason="no process is forked here")
SEEN = """
import builtins, os, sys
print(os.getcwd(), os.environ["ASKED_FOR"], hasattr(builtins, "left"), "torch" in sys.modules, len(sys.argv))
builtins.left = True
import matplotlib.pyplot as plt
plt.plot([1, 2]);
"""


@pytest.fixture
def run(kernel_name, tmp_path):
    def run_cells(*sources, timeout=60):
        metadata = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), tmp_path / "asked.ipynb")
        names, options = ("asked.ipynb", "ran.ipynb"), {"kernel_name": kernel_name, "progress_bar": False}
        paths = [str(tmp_path / name) for name in names]
        ran = papermill.execute_notebook(*paths, cwd=str(tmp_path), execution_timeout=timeout, **options)
        return [cell.outputs for cell in ran.cells]

    return run_cells


def test_every_notebook_has_a_fresh_process_with_the_libraries_and_its_own_place(run, tmp_path, monkeypatch):
    for asked in ("one", "two"):
        monkeypatch.setenv("ASKED_FOR", asked)
        ((printed, picture),) = run(SEEN)
        assert printed["text"].split()[:4] == [str(tmp_path), asked, "False", "True"]
        assert "image/png" in picture["data"]


def test_a_cell_that_hangs_and_a_kernel_that_dies_are_noticed(run):
    with pytest.raises(CellTimeoutError):
        run("import time\ntime.sleep(60)", timeout=1)
    with pytest.raises(DeadKernelError):
        run("import os\nos._exit(3)")
    with pytest.raises(papermill.PapermillExecutionError, match="ZeroDivisionError"):
        run("1 / 0")
