"""etcd: its client by library and by command, the ledger of releases, the deploy lock, the announcements.

What is written there is defined in `model`.
"""
