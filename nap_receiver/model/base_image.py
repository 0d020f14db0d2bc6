"""What a Dockerfile inherits from its base image."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Base:
    """What a Dockerfile inherits from an image: its variables and the instructions of its `ONBUILD`."""

    variables: dict[str, str] = field(default_factory=dict)
    triggers: tuple[str, ...] = ()
