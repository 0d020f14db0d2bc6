"""The units of an instance, rendered from `unit_templates/<scheduler>/`."""

import re
from dataclasses import dataclass
from pathlib import Path

import jinja2

from nap_receiver.core.errors import NapError
from nap_receiver.core.settings import Settings
from nap_receiver.core.templates import TEMPLATES, environment
from nap_receiver.engine.container import NETWORK, bridge_of
from nap_receiver.model.release import DISCOVERY, Instance
from nap_receiver.schedulers.placement import Placement

# What a unit of systemd's, a program of supervisord's, a container and a file can all be called without quotes.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

LEASE_SECONDS = 20
"""How long an announcement outlives a machine that was lost."""


@dataclass(frozen=True)
class Unit:
    """A unit: file name and text."""

    name: str
    text: str


@dataclass(frozen=True)
class InstanceUnits:
    """The app unit runs the instance; the discovery unit announces it."""

    instance: Instance
    app: Unit
    discovery: Unit


def render(instance: Instance, body: str, settings: Settings, placement: Placement | None = None) -> InstanceUnits:
    """Render both units of `instance`; `body` is the digest of its create body (`container.write_down`).

    `placement` chooses the machines. Raises `NapError` if a value cannot be escaped.
    """
    if not _NAME.fullmatch(instance.unit):
        raise NapError(f"{instance.unit[:80]!a} is not a valid unit name")
    release = instance.release
    values = {
        "instance": instance,
        "release": release,
        "container": instance.unit,
        "settings": settings,
        "placement": placement or Placement(),
        "programs": TEMPLATES,
        "port": f"{release.port}/tcp",
        "announcement": f"{_announcements(instance, settings)}{instance.key}",
        "body": settings.etcd.container_of(release.app, instance.key),
        "digest": body,
        "asked": settings.etcd.checks_of(release.app, instance.key),
        "network": NETWORK,
        "bridge": bridge_of(""),
        "exit": f"{settings.etcd.exits_of(release.app)}{instance.key}",
        "lease_seconds": LEASE_SECONDS,
    }
    folder = TEMPLATES / settings.scheduler
    return InstanceUnits(
        instance,
        Unit(instance.unit, _rendered(folder, "app", values)),
        Unit(instance.unit + DISCOVERY, _rendered(folder, "discovery", values)),
    )


def _announcements(instance: Instance, settings: Settings) -> str:
    places = settings.etcd
    return places.announcements_of(instance.release.app) if instance.is_web else places.up_of(instance.release.app)


def _rendered(folder: Path, kind: str, values: dict[str, object]) -> str:
    (template,) = folder.glob(f"{kind}.*.j2")
    try:
        return environment(folder).get_template(template.name).render(values)
    except jinja2.TemplateError as error:
        raise NapError(f"{template}: {error}", advice="Fix the template, or restore nap's own.") from error
