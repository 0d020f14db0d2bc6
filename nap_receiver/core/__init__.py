"""Shared code: errors, deadlines, paths, settings, the channel, logs, escaping, privacy, supervision.

It does not know apps, releases, etcd or the engine, and imports no other folder of nap.
"""
