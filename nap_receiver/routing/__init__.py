"""Routing: send requests for a domain to the announced instances. Router, Caddy, domains, certificates.

Not here: the announcements (`store`), and starting or stopping instances (`schedulers`).
"""
