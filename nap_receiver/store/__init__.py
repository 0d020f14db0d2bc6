"""etcd: clients, the ledger of releases, the deploy lock, and announcements.

Not here: the data types of the values (`model`).
"""
