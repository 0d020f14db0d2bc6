"""The name by which the command that pip installed with nap 0.1 runs `frontends.cli`, until the next `make install`."""

from nap_receiver.frontends.cli import main

__all__ = ["main"]
