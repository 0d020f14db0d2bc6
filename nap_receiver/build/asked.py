"""The interface of builders, and their input: what to build, and with which limits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from nap_receiver.build.dockerfile import Frontend
from nap_receiver.build.dockerfile_lines import Instruction
from nap_receiver.core.channel import Channel
from nap_receiver.core.settings import BuildSettings
from nap_receiver.git.checkout import Checkout


@dataclass(frozen=True)
class Build:
    """An image to build. `confine` has already checked the images and downloads of its Dockerfile."""

    app: str
    tag: str
    """What the image is to be called."""
    checkout: Checkout
    limits: BuildSettings
    arguments: Mapping[str, str] = field(default_factory=dict)
    """Build arguments, of those that the Dockerfile asks for."""
    source: str = ""
    """The Dockerfile, as its author wrote it."""
    instructions: Sequence[Instruction] = ()
    """Those of `source`."""

    @property
    def labels(self) -> dict[str, str]:
        """The labels of the image."""
        return {"nap.app": self.app}


class Builder(Protocol):
    """Builds images on an engine."""

    frontend: Frontend

    def build(self, asked: Build, channel: Channel) -> None:
        """Build the image; output goes to the channel. Raises `NapError`; then there is no image."""
