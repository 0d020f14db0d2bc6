"""Access: rights to apps, keys of users, and the account that nap runs as.

Not here: ssh's forced command, which checks these rights; see `frontends`.
"""
