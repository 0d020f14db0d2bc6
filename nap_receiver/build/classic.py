"""Build with the engine's classic builder: each instruction in its own container, one after the other."""

import re

from docker import constants
from docker.errors import APIError

from nap_receiver.build.asked import Build
from nap_receiver.build.dockerfile import CLASSIC
from nap_receiver.build.failure import build_failed, is_disk_full, reason_of
from nap_receiver.build.lines import Lines
from nap_receiver.core.channel import Channel
from nap_receiver.core.settings import BuildSettings
from nap_receiver.engine.client import Engine, text_of
from nap_receiver.engine.container import CPU_PERIOD, NETWORK
from nap_receiver.engine.control_group import bounded_group

# What the builder says about itself.
_HOUSEKEEPING = re.compile(
    r" ---> |Removing intermediate container |Successfully (built|tagged) |Step \d+/\d+ : LABEL nap\."
)
# The library checks the names of limits against this list, which has not all that the engine takes.
constants.CONTAINER_LIMITS_KEYS.extend(["cpuperiod", "cpuquota", "cgroupparent"])


class Classic:
    """The classic builder of an engine. Its steps are on the network of apps, which must exist (`network`)."""

    frontend = CLASSIC

    def __init__(self, engine: Engine, machine: str = "") -> None:
        """`machine` is the name of nap on the engine's machine, where it may make control groups there."""
        self._engine, self._machine = engine, machine

    def build(self, asked: Build, channel: Channel) -> None:
        """Build the image; output goes to the channel. Raises `NapError`; then there is no image."""
        pids = asked.limits.pids
        if not pids or not self._machine:
            self._build(asked, "", channel)
            return
        with bounded_group(asked.app, self._machine, self._engine.cgroup_driver(), pids) as group:
            self._build(asked, group, channel)

    def _build(self, asked: Build, group: str, channel: Channel) -> None:
        step, disk_full = "", False
        lines = Lines()
        try:
            with self._engine.answering(), channel.waiting("building"):
                for item in self._engine.api.build(
                    fileobj=asked.checkout.tar(),
                    custom_context=True,
                    tag=asked.tag,
                    labels=asked.labels,
                    buildargs=dict(asked.arguments),
                    rm=True,
                    forcerm=True,
                    decode=True,
                    container_limits=_limits(asked.limits, group),
                    network_mode=NETWORK,
                ):
                    lines_now = lines.of(text_of(item)) if "error" not in item else lines.rest()
                    for line in lines_now:
                        if line.startswith("Step "):
                            step, disk_full = line, False
                        elif is_disk_full(line):
                            disk_full = True
                        if not _HOUSEKEEPING.match(line):
                            channel.detail(line)
                    if "error" in item:
                        raise build_failed(asked.app, step, reason_of(item), asked.limits, disk_full)
        except APIError as error:
            reason = error.explanation or str(error)
            raise build_failed(asked.app, step, reason, asked.limits, disk_full) from error


def _limits(settings: BuildSettings, group: str) -> dict[str, int | str]:
    """Return the limits of one build step, as the engine's API names them (`POST /build`)."""
    found: dict[str, int | str] = {"cgroupparent": group} if group else {}
    if settings.memory:
        found |= {"memory": settings.memory, "memswap": settings.memory}  # memory and swap together
    if settings.cpus:
        found |= {"cpuperiod": CPU_PERIOD, "cpuquota": int(settings.cpus * CPU_PERIOD)}
    return found
