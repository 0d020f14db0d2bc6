"""The router's name for each app, and its URL."""

from nap_receiver.core.settings import RouterSettings, Settings


def own_name(app: str, router: RouterSettings) -> str:
    """Return the domain that nap gives to each app: `hello.localhost`."""
    return f"{app}.{router.domain}"


def has_router(settings: Settings) -> bool:
    """Return whether apps have domains; on a cluster only if the operator has set `router.domain`."""
    domain = settings.router.domain
    return bool(domain) and not (not settings.is_single_machine and domain == RouterSettings().domain)


def url_of(app: str, settings: Settings) -> str:
    """Return the URL of the app at that domain; empty without a router."""
    router = settings.router
    if not has_router(settings):
        return ""
    scheme, address, usual = ("https", router.https, 443) if router.https else ("http", router.http, 80)
    port = "" if address.port == usual else f":{address.port}"
    return f"{scheme}://{own_name(app, router)}{port}"
