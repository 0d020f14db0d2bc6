"""From a name to the instances that answer: the router, Caddy's configuration and API, domains, certificates.

Which instances answer is announced in etcd (`store`); nothing here starts or stops one.
"""
