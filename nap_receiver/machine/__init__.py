"""A single machine that runs nap: up, down and status, its programs and their configuration, its firewall.

Which apps run on it is decided in `deploy`.
"""
