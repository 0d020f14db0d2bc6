"""Who may do what: access rights of apps, keys of users, and the account that nap runs as.

It knows users and rights; ssh's forced command, which asks it, is in `frontends`.
"""
