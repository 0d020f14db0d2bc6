"""Explain to the pusher why a build failed."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nap_receiver.core.channel import plain
from nap_receiver.core.errors import NapError
from nap_receiver.core.settings import BuildSettings

_DISK_FULL = re.compile(r"no space left on device", re.IGNORECASE)
# The classic builder's words, and those of BuildKit in engines up to 20.10 and of later ones.
_EXITED = re.compile(r"(?:returned a non-zero code|exit code): (\d+)$")
_KILLED = "137"  # 128 and SIGKILL, by which the kernel ends what is out of memory
# What BuildKit says before the reason, of the programs through which it came.
_PREFIXES = re.compile(
    r"(failed to (solve( with frontend [\w.]+)?|compute cache key|calculate checksum of ref \S+)"
    r"|rpc error: code = \w+ desc =):? "
)


def is_disk_full(text: str) -> bool:
    """Whether a program says that there is no space left."""
    return bool(_DISK_FULL.search(text))


def reason_of(item: Mapping[str, Any]) -> str:
    """The engine's reason, of an item of its output that has an `error`."""
    return str(item.get("errorDetail", {}).get("message") or item["error"])


def build_failed(
    app: str, step: str, reason: str, limits: BuildSettings, disk_full: bool = False, words: Sequence[str] = ()
) -> NapError:
    """The error of a build that ended at `step`, which may be empty, for `reason`.

    `words` are the program's own that the pusher should see besides, and `disk_full` tells whether it said so.
    """
    reason = plain(_PREFIXES.sub("", reason).replace("\n", " "))
    at = f" at {step[0].lower()}{step[1:]}" if step else ""
    if disk_full or is_disk_full(reason):
        return NapError(
            f"{app}: the build ran out of disk space{at}: {reason}",
            words=words,
            advice="Ask the operator to free space where the engine keeps images (docker system df); then push again.",
        )
    if status := _EXITED.search(reason):
        reason = f"it exited with status {status[1]}"
        if status[1] == _KILLED and limits.memory:
            return NapError(
                f"{app}: the build failed{at}: it was killed, most likely because it took more memory than the "
                f"{limits.memory} bytes that build.memory allows",
                words=words,
                advice="Have the step take less memory (fewer jobs at once), or ask the operator; then push again.",
            )
    return NapError(
        f"{app}: the build failed{at or ' in the Dockerfile'}: {reason}",
        words=words,
        advice="Fix it, commit, and push again; nothing was started, and running instances were not changed.",
    )
