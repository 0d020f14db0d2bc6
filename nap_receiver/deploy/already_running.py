"""Check whether the pushed commit is already running; if so, print its address."""

from nap_receiver.core.channel import Channel
from nap_receiver.core.settings import Settings
from nap_receiver.git.push import Deployment
from nap_receiver.model.app_url import url_of
from nap_receiver.model.release import Outcome
from nap_receiver.store.announcements import serving, show
from nap_receiver.store.etcd import Etcd
from nap_receiver.store.ledger import Ledger


def runs_already(
    asked: Deployment, ledger: Ledger, etcd: Etcd, settings: Settings, channel: Channel, *, moved: bool
) -> bool:
    """If the commit already runs, report that and its addresses and return true; else return false.

    If the branch has not `moved`, its commit was pushed before: it is not deployed again if it was live and somebody
    has rolled it back.
    """
    current = ledger.current()
    addresses = serving(etcd, settings.etcd, current) if current else None
    if current is None or addresses is None:
        return False
    commit, url = asked.commit[:7], url_of(asked.app, settings)
    if current.commit == asked.commit:
        show(f"{asked.app} {current.name} already runs {commit}", url, addresses, channel)
        return True
    if not moved and (last := ledger.last_of(asked.commit)) and last[1] == Outcome("live"):
        show(f"{asked.app} {current.name} runs {current.commit[:7]} ({current.why})", url, addresses, channel)
        channel.detail(f"{commit} was {last[0].name}. To run it again: rollback {asked.app} {last[0].name}")
        return True
    return False
