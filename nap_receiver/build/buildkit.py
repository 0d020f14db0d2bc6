"""Build with the engine's BuildKit: independent stages at the same time, without unneeded stages.

It is called as the classic builder is (`POST /build`, with `version=2`), without a session of BuildKit's own. So it has
no credentials and no secrets, and every base image must be pulled before: `confine` does that. It takes no limits; its
steps are in a control group of the engine's (`control_group`) and on the engine's own network.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from docker import constants
from docker.errors import APIError

from nap_receiver.build.asked import Build
from nap_receiver.build.dockerfile import DOCKERFILE_1_2, NEWEST, Frontend, platform_variables
from nap_receiver.build.dockerfile_lines import Instruction
from nap_receiver.build.failure import build_failed, reason_of
from nap_receiver.build.progress import Progress, Step
from nap_receiver.core.channel import Channel, plain
from nap_receiver.core.errors import NapError
from nap_receiver.engine.client import Engine, EngineFacts
from nap_receiver.engine.control_group import bound_buildkit
from nap_receiver.git.checkout import DOCKERFILE

_ENGINE_23 = (1, 42)  # the first whose BuildKit has here-documents and COPY --link in it
_TRACE = "moby.buildkit.trace"
_SHOWN_LINES = 6  # of a step that failed, in the Dockerfile

# The library takes no version of the builder; what it takes for a limit, it hands on as it is.
constants.CONTAINER_LIMITS_KEYS.append("version")


class BuildKit:
    """The BuildKit of an engine."""

    def __init__(self, engine: Engine, about: EngineFacts, machine: str = "") -> None:
        """`machine` is the name of nap on the engine's machine, where the engine is nap's own."""
        self._engine, self._machine = engine, machine
        frontend = NEWEST if about.version >= _ENGINE_23 else DOCKERFILE_1_2
        self.frontend: Frontend = replace(frontend, platform=platform_variables(about.system, about.architecture))

    def build(self, asked: Build, channel: Channel) -> None:
        """Build the image; output goes to the channel. Raises `NapError`; then there is no image."""
        if self._machine:
            bound_buildkit(asked.app, self._machine, asked.limits)
        try:
            self._build(asked, channel)
        finally:
            self._bound_cache(asked, channel)

    def _bound_cache(self, asked: Build, channel: Channel) -> None:
        """Prune the build cache to `build.cache_size`, least recently used first."""
        if not asked.limits.cache_size:
            return
        try:
            with self._engine.answering():
                self._engine.api.prune_builds(keep_storage=asked.limits.cache_size, all=True)
        except (NapError, APIError) as error:
            channel.trouble(
                f"{asked.app}: the build cache was not pruned and may exceed build.cache_size: {plain(str(error))}"
            )

    def _build(self, asked: Build, channel: Channel) -> None:
        progress = Progress()
        # Mounts of type cache are the app's alone, whatever their ids.
        arguments = {**asked.arguments, "BUILDKIT_CACHE_MOUNT_NS": asked.app}
        try:
            with self._engine.answering(), channel.waiting("building"):
                for item in self._engine.api.build(
                    fileobj=asked.checkout.tar(),
                    custom_context=True,
                    tag=asked.tag,
                    labels=asked.labels,
                    buildargs=arguments,
                    decode=True,
                    container_limits={"version": 2},
                ):
                    if item.get("id") == _TRACE:
                        for line in progress.of(item["aux"]):
                            channel.detail(line)
                    elif "error" in item:
                        for line in progress.rest():
                            channel.detail(line)
                        raise _failed(asked, progress, reason_of(item))
        except APIError as error:
            raise _failed(asked, progress, error.explanation or str(error)) from error


def _failed(asked: Build, progress: Progress, reason: str) -> NapError:
    step = progress.failed
    if step is None:
        return build_failed(asked.app, "", reason, asked.limits)
    words = lines_of(step, asked.source, asked.instructions)
    if not progress.spoke_last and step.last:  # other steps' lines came in between
        words += ["Its last output:", *step.last]
    return build_failed(asked.app, step.name, reason, asked.limits, step.disk_full, words)


def lines_of(step: Step, source: str, instructions: Sequence[Instruction]) -> list[str]:
    """Return the place of a step in the Dockerfile and its first lines, if they can be found."""
    written = source.split("\n")
    wanted = _squeezed(step.text.partition(" (")[0] if "<<" in step.text else step.text)
    for each in instructions:
        first, last = each.lines
        lines = [plain(line) for line in written[first - 1 : last]]
        if _squeezed("\n".join(lines)).startswith(wanted):
            where = f"line {first}" if first == last else f"lines {first} to {last}"
            return [f"{DOCKERFILE}, {where}:", *lines[:_SHOWN_LINES], *["…"] * (len(lines) > _SHOWN_LINES)]
    return []


def _squeezed(text: str) -> str:
    """Return the text of an instruction without comments, blanks and line ends."""
    return re.sub(r"[\s\\`]+", "", re.sub(r"^[ \t]*#.*$", "", text, flags=re.MULTILINE))
