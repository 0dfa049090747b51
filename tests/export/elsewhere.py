"""A Python of somebody who does not have this package: it runs lines that a model card prints."""

import os
import re
import subprocess
import sys
import sysconfig

# -I takes no variables and no current folder, -S reads no .pth file, by which a package that is edited is found.
_BEGINNING = """
import sys
sys.path.append({site!r})
sys.modules["snows_core"] = None  # where it is installed beside the libraries
try:
    import snows_core
except ImportError:
    pass
else:
    raise SystemExit("the package is here")
"""


def card_lines(readme, which=0):
    """Return the Python lines of a card as they are printed, of its first block or another."""
    return re.findall(r"```python\n(.*?)\n```", readme, re.DOTALL)[which]


def run_elsewhere(code, folder, python=(sys.executable, "-I", "-S")):
    """Run code in a folder, in a process that cannot import this package; return what it printed."""
    code = _BEGINNING.format(site=sysconfig.get_paths()["purelib"]) + code
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HOME": str(folder)}
    done = subprocess.run([*python, "-c", code], cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout
