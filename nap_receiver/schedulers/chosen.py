"""Which scheduler the settings choose."""

from nap_receiver.core.paths import State
from nap_receiver.core.settings import Settings
from nap_receiver.schedulers.local import Local
from nap_receiver.schedulers.scheduler import Scheduler


def scheduler_of(state: State, settings: Settings) -> Scheduler:
    """What runs units under these settings."""
    if settings.scheduler == "fleet":
        from nap_receiver.schedulers.fleet import Fleet  # its library is for those who call it

        return Fleet(state, settings)
    return Local(state)
