"""Choose the scheduler by the settings."""

import importlib
from collections.abc import Callable
from importlib import metadata

from nap_receiver.core.paths import State
from nap_receiver.core.settings import PLUGINS, Settings
from nap_receiver.schedulers.scheduler import Scheduler

_OWN = {
    "local": "nap_receiver.schedulers.local:Local",
    "fleet": "nap_receiver.schedulers.fleet:Fleet",
    "null": "nap_receiver.schedulers.null:Null",
}


def scheduler_of(state: State, settings: Settings) -> Scheduler:
    """Return the scheduler that the settings name; its libraries are imported only then."""
    if own := _OWN.get(settings.scheduler):
        module, _, name = own.partition(":")
        make: Callable[[State, Settings], Scheduler] = getattr(importlib.import_module(module), name)
    else:
        (plugin,) = metadata.entry_points(group=PLUGINS, name=settings.scheduler)  # the settings saw that it is there
        make = plugin.load()
    return make(state, settings)
