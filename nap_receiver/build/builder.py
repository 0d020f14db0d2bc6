"""Choose the builder by the settings and the engine."""

from nap_receiver.build.asked import Builder
from nap_receiver.build.buildkit import BuildKit
from nap_receiver.build.classic import Classic
from nap_receiver.core.errors import NapError
from nap_receiver.core.paths import State
from nap_receiver.core.settings import Settings
from nap_receiver.engine.client import Engine
from nap_receiver.engine.daemon import is_root_there, own_url

_ENGINE_28 = (1, 48)  # moby pull request 49178
_ENGINE_18_09 = (1, 39)  # the first whose API has BuildKit


def builder_of(engine: Engine, state: State, settings: Settings) -> Builder:
    """Return the builder that the settings name, or with `auto` the best one that isolates builds.

    BuildKit runs steps on the engine's own network and without limits. nap's own engine has the right network and
    limits (`own_command`); on another engine its operator decides. Raises `NapError` if the named builder cannot build
    on this engine.
    """
    about = engine.about()
    is_own = settings.engine.url == own_url(state)
    asked = settings.build.engine
    if asked == "buildkit" and about.version < _ENGINE_28 and engine.has_containerd_store():
        raise NapError(
            "BuildKit of this engine takes no build context, because the engine keeps images in containerd's store",
            advice="Operator: use Docker Engine 28, the store `overlay2` (daemon.json), or build.engine = classic.",
        )
    if asked == "buildkit" or (asked == "auto" and is_own and about.version >= _ENGINE_18_09):
        return BuildKit(engine, about, state.name if is_own else "")
    return Classic(engine, state.name if is_root_there(settings.engine.url) else "")
