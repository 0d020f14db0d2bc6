"""The name by which gitolite's trigger of nap 0.1 runs `frontends.gitolite_trigger`."""

from nap_receiver.core.process import run
from nap_receiver.frontends.gitolite_trigger import main

if __name__ == "__main__":
    run(main)
