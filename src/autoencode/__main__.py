"""The program `autoencode`, and `python -m autoencode`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    try:
        from autoencode.cli.main import main as run
    except KeyboardInterrupt:  # loading the commands takes a quarter of a second
        sys.exit(130)  # STOPPED of cli.progress, which is not loaded yet
    run()


if __name__ == "__main__":
    main()
