"""Jupyter kernels that share what they import: a server loads the libraries once and forks a child for every notebook.

A kernel of its own takes some five seconds to import PyTorch, timm and matplotlib, and the tests start sixteen. Each
notebook still has a fresh process in which no notebook ran before; only the libraries are there already.

    python forked_kernels.py serve SOCKET             load, print "ready", then fork a kernel for each connection
    python forked_kernels.py kernel SOCKET FILE       what Jupyter starts: have a kernel forked for a connection file,
                                                      pass interrupts on, and end with it
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

NAME = "forked"
LIBRARIES = (
    "ipykernel.kernelapp IPython.core.pylabtools matplotlib.pyplot ipywidgets seaborn"
    " pandas sklearn.datasets timm torchvision.models torch.func torch.nn.utils.prune"
    " snows_core.activations snows_core.book snows_core.book.plots snows_core.cli.app snows_core.loss snows_core.masks"
    " snows_core.methods snows_core.network snows_core.prune snows_core.estimate snows_core.solvers snows_core.zoo"
).split()


def available() -> bool:
    """Return whether a process with these libraries can be forked here; elsewhere a kernel of its own is as good."""
    return sys.platform == "linux"


class ForkedKernels:
    """A running server, and the kernel ``forked`` that Jupyter finds in ``folder``.

    Args:
        folder: where the socket and the kernel's description are put; it goes into ``JUPYTER_PATH``. Its name is short,
            for an address has a hundred letters at most.
    """

    def __init__(self, folder: Path) -> None:
        address = str(folder / "socket")
        kernel = folder / "kernels" / NAME
        kernel.mkdir(parents=True)
        argv = [sys.executable, "-S", "-E", __file__, "kernel", address, "{connection_file}"]
        (kernel / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": NAME, "language": "python"}))
        self.process = subprocess.Popen(
            [sys.executable, __file__, "serve", address], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.process.stdout is not None and self.process.stdout.readline() == "ready\n"

    def close(self) -> None:
        """Let the server end; kernels that still run end with those who asked for them."""
        self.process.terminate()
        self.process.wait()


def serve(address: str) -> None:
    """Load the libraries, then fork a kernel for whoever connects."""
    import gc
    import importlib

    sys.path.remove(str(Path(__file__).resolve().parent))  # a notebook does not see this folder
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # as ipykernel has it
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.freeze()  # what is shared is not written to
    signal.signal(signal.SIGCHLD, take_leave_of_children)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                become_a_kernel(connection)
            connection.close()


def take_leave_of_children(*_: object) -> None:
    """Wait for those that have ended, so that what they took is counted with this process."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def become_a_kernel(connection: socket.socket) -> None:
    """Take over folder and environment of the one who asked, and run until Jupyter ends this kernel."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    asked = json.loads(connection.makefile().readline())
    os.chdir(asked["folder"])
    backend = os.environ["MPLBACKEND"]
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.environ.setdefault("MPLBACKEND", backend)
    connection.sendall(f"{os.getpid()}\n".encode())

    def end_with_the_one_who_asked() -> None:
        connection.recv(1)  # comes back when the other side is gone
        os._exit(1)

    threading.Thread(target=end_with_the_one_who_asked, daemon=True).start()
    from ipykernel.kernelapp import launch_new_instance

    launch_new_instance(argv=["-f", asked["file"], "--log-level=CRITICAL", "--HistoryManager.hist_file=:memory:"])
    os._exit(0)


def kernel(address: str, file: str) -> None:
    """Have a kernel forked, and be there as long as it is."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        asked = {"folder": os.getcwd(), "environment": dict(os.environ), "file": file}
        connection.sendall(json.dumps(asked).encode() + b"\n")
        child = int(connection.makefile().readline())
        signal.signal(signal.SIGINT, lambda *_: os.kill(child, signal.SIGINT))
        connection.recv(1)  # comes back when the kernel has ended


if __name__ == "__main__":
    {"serve": serve, "kernel": kernel}[sys.argv[1]](*sys.argv[2:])
