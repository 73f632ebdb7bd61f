"""`python -m autoencode`, the same as `autoencode`."""

from __future__ import annotations

from autoencode.cli.main import main

if __name__ == "__main__":
    main()
