"""`nap doctor`: check a nap and repair it."""

import sys

import click

from nap_receiver.frontends.commands.table import Caller, command, json_option, show_listing


@command("doctor")
@click.option("--fix", is_flag=True, help="Repair what can be repaired, except for apps that are being deployed.")
@json_option
def doctor(caller: Caller, fix: bool, as_json: bool) -> None:
    """Check this nap for problems. Exit status 1 if there are problems, or if some remain after --fix."""
    from nap_receiver.upkeep.doctor import examine  # a third of a second of libraries

    well = True
    rows = []
    for finding in examine(caller.state, caller.user, fix=fix):
        well = well and finding.state in {"ok", "repaired"}
        if as_json:
            rows.append((finding.check, finding.state, finding.about, finding.advice))
            continue
        click.echo(f"{finding.state:10}{finding.check}: {finding.about}")
        if finding.advice:
            click.echo(f"{'':10}{finding.advice}")
    if as_json:
        show_listing(rows, "check", "state", "about", "advice", as_json=True)
    if not well:
        sys.exit(1)
