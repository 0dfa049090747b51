"""``python -m snows_core`` is the command line, for launchers that take a module: ``torchrun ... -m snows_core``."""

from snows_core.cli import main

if __name__ == "__main__":
    main()
