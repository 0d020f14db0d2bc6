"""The name by which a hook of nap 0.1 runs `frontends.hook`: `python -m nap_receiver.hook`."""

from nap_receiver.core.process import run
from nap_receiver.frontends.hook import main

if __name__ == "__main__":
    run(main)
