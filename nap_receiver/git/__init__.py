"""git: repositories, ref updates, receive-pack, and the tree of a commit as a build context.

Not here: the right to push (`auth`), and the deploy after a push (`deploy`).
"""
