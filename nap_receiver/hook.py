"""The name by which a hook of nap 0.1 runs `frontends.hook`: `python -m nap_receiver.hook`."""

import sys

from nap_receiver.frontends.hook import main

if __name__ == "__main__":
    sys.exit(main())
