"""`builds`: show deploy logs, and cancel a deploy."""

from contextlib import suppress

import click

from nap_receiver.core.deploy_log import follow, is_over, log_of, logs, result
from nap_receiver.core.errors import NapError
from nap_receiver.frontends.commands.table import Caller, app_argument, command, json_option, require_app, show_listing

_CANCEL_SECONDS = 60.0


@command("builds", right="read")
@app_argument
@json_option
def list_builds(caller: Caller, app: str, as_json: bool) -> None:
    """List the builds of APP that have a log on this host, oldest first."""
    build_logs = logs(caller.state, app)
    rows = [(log.stem, "finished" if is_over(log) else "running", result(log) or "") for log in build_logs]
    show_listing(rows, "build", "state", "result", as_json=as_json)


@command("builds:output", right="read")
@app_argument
@click.argument("build", required=False)
@click.option("-t", "--tail", is_flag=True, help="Follow the log until the build ends.")
def show_build(caller: Caller, app: str, build: str | None, tail: bool) -> None:
    """Show the log of BUILD. Default: the latest build."""
    log = log_of(caller.state, app, build)
    with suppress(BrokenPipeError):  # whoever reads it has seen enough
        if not tail:
            click.echo(log.read_text(encoding="utf-8", errors="replace"), nl=False)
            return
        with follow(log) as lines:
            for line in lines:
                click.echo(line)


@command("builds:cancel", right="push")
@app_argument
def cancel_build(caller: Caller, app: str) -> None:
    """Cancel the running deploy of APP. The current release keeps running."""
    from nap_receiver.core.settings import load
    from nap_receiver.store.etcd import connect
    from nap_receiver.store.ledger import Ledger
    from nap_receiver.store.lock import cancel

    require_app(caller, app)
    places = load(caller.state).settings.etcd
    with connect(places) as etcd:
        ledger = Ledger(etcd, places, app)
        before = ledger.current()
        stopped = cancel(etcd, ledger.root, caller.user, _CANCEL_SECONDS)
        now = ledger.current()
    if stopped is None:
        raise NapError(f"nothing is being deployed to {app}", advice=f"To list the builds: builds {app}")
    if now and now != before:
        raise NapError(f"{app} {now.name} was live before it could be cancelled")
    click.echo(f"{app}: cancelled; {stopped.who} was {stopped.doing}")
