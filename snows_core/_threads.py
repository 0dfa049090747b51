"""Threads that sleep while they wait, set before PyTorch starts them; imported first by the package.

OpenMP's threads by default spin: on a machine whose cores are busy with something else (a shared server, a container
with less CPU than it shows) two of them took more than thirty times the seconds of one, measured beside another process
on two cores. A value that the user has set stays.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
