"""The name by which authorized_keys of nap 0.1 runs `frontends.gate`: `python -m nap_receiver.gate`."""

from nap_receiver.core.process import run
from nap_receiver.frontends.gate import main

if __name__ == "__main__":
    run(main)
