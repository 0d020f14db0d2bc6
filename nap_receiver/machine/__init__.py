"""The single machine: `nap up`, `down` and `status`, nap's programs and their configuration, the firewall.

Not here: the apps that run on it (`deploy`).
"""
