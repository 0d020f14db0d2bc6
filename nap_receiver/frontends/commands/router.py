"""`router`: run the router on a cluster, or on its own machine."""

from contextlib import suppress

import click

from nap_receiver.frontends.commands.table import Caller, command


@command("router")
@click.option("--prepare", "only_prepare", is_flag=True, help="Only write the configuration files of both Caddies.")
def run_router(caller: Caller, only_prepare: bool) -> None:
    """Run the router: keep the Caddies of this machine configured. On a single machine, `nap up` runs it."""
    from nap_receiver.core.settings import load
    from nap_receiver.routing.caddy_configuration import is_routing, prepare
    from nap_receiver.routing.router import route_for_ever
    from nap_receiver.store.etcdctl import write_etcdctl

    settings = load(caller.state).settings
    paths = prepare(caller.state)
    # For commands that look into etcd, such as `logs`, where no `nap up` has written it.
    write_etcdctl(caller.state, settings.etcd)
    if only_prepare:
        click.echo("\n".join(map(str, paths)))
        return
    if is_routing(caller.state):
        click.echo("Another router is running. This one takes over when the other ends.", err=True)
    with suppress(KeyboardInterrupt):
        route_for_ever(caller.state, settings)
