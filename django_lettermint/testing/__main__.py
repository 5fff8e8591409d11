"""Run the local relay: `python -m django_lettermint.testing`."""

from __future__ import annotations

from .command import main

if __name__ == "__main__":
    main()
