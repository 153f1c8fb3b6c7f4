"""`python -m sparring`, and so `torchrun -m sparring`."""

from __future__ import annotations

from sparring.cli import main

if __name__ == "__main__":
    main()
