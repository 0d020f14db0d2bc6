"""One deploy at a time per app: a leased key in etcd, so that it holds across receivers and dies with its holder."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from nap_receiver.channel import Channel
from nap_receiver.errors import NapError
from nap_receiver.etcd import Etcd
from nap_receiver.release import Ledger

LEASE_SECONDS = 10
"""How long a lock outlives a holder that was killed."""


@contextmanager
def deploy_lock(etcd: Etcd, ledger: Ledger, who: str, what: str, patience: float, channel: Channel) -> Iterator[None]:
    """Hold the app's deploy lock for the block; one who waits is told for whom, for at most `patience` seconds."""
    app, key = ledger.app, f"{ledger.root}/lock"
    give_up = time.monotonic() + patience
    with etcd.lease(LEASE_SECONDS) as lease:
        while not etcd.create(key, {"who": who, "what": what, "since": time.time()}, lease=lease):
            holder = etcd.get(key)
            if holder is None:
                continue
            since = time.strftime("%H:%M:%S", time.localtime(holder.value["since"]))
            doing = f"{holder.value['who']} has been deploying {holder.value['what']} since {since}"
            channel.step(f"{app}: waiting, {doing}")
            with channel.waiting(f"waiting: {doing}"):
                changes = etcd.changes([key], holder.revision, max(0.0, give_up - time.monotonic()))
                if not any(change.value is None for change in changes):
                    raise NapError(
                        f"{app}: not deployed: {doing}, and that is not over after {patience:g} s",
                        advice="Push again when it is.",
                    )
        yield
