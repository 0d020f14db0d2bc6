"""A Docker Engine: its client, the bodies of its create calls, its own daemon, control groups, its login to a registry.

Which containers there are to be is decided in `schedulers` and `deploy`, and what is built in `build`.
"""
