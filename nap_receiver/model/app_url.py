"""The router's name for each app, and its URL."""

from nap_receiver.core.settings import RouterSettings, Settings


def own_name(app: str, router: RouterSettings) -> str:
    """The name that every app has: `hello.localhost`."""
    return f"{app}.{router.domain}"


def has_router(settings: Settings) -> bool:
    """Whether apps have names; on a cluster only where its operator has set one up, below a domain that is told."""
    domain = settings.router.domain
    return bool(domain) and not (not settings.is_single_machine and domain == RouterSettings().domain)


def url_of(app: str, settings: Settings) -> str:
    """Where the app is reached by that name; empty where there is no router."""
    router = settings.router
    if not has_router(settings):
        return ""
    scheme, address, usual = ("https", router.https, 443) if router.https else ("http", router.http, 80)
    port = "" if address.port == usual else f":{address.port}"
    return f"{scheme}://{own_name(app, router)}{port}"
