"""The name by which a program's configuration of nap 0.1 runs `routing.router`: `python -m nap_receiver.router`."""

from nap_receiver.routing.router import main

if __name__ == "__main__":
    main()
