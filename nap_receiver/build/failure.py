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
    """Return whether the text reports a full disk."""
    return bool(_DISK_FULL.search(text))


def reason_of(item: Mapping[str, Any]) -> str:
    """Return the engine's reason in an output item that has an `error`."""
    return str(item.get("errorDetail", {}).get("message") or item["error"])


def build_failed(
    app: str, step: str, reason: str, limits: BuildSettings, disk_full: bool = False, words: Sequence[str] = ()
) -> NapError:
    """Return the error of a build that ended at `step`, which may be empty, because of `reason`.

    `words` are output lines that the pusher should also see; `disk_full` is true if the output reported a full disk.
    """
    reason = plain(_PREFIXES.sub("", reason).replace("\n", " "))
    at = f" at {step[0].lower()}{step[1:]}" if step else ""
    if disk_full or is_disk_full(reason):
        return NapError(
            f"{app}: the build ran out of disk space{at}: {reason}",
            words=words,
            advice="Ask the operator to free disk space of the engine (docker system df), then push again.",
        )
    if status := _EXITED.search(reason):
        reason = f"it exited with status {status[1]}"
        if status[1] == _KILLED and limits.memory:
            return NapError(
                f"{app}: the build failed{at}: it was killed, probably because it used more memory than build.memory "
                f"allows ({limits.memory} bytes)",
                words=words,
                advice="Use less memory in this step, or ask the operator to raise build.memory; then push again.",
            )
    return NapError(
        f"{app}: the build failed{at or ' in the Dockerfile'}: {reason}",
        words=words,
        advice="Fix it, commit, and push again; nothing was started, and running instances were not changed.",
    )
