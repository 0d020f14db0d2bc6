"""Repositories and what is pushed into them: ref updates, receive-pack, a commit's tree as a build context.

Who may push is `auth`'s to say, and what a push leads to `deploy`'s.
"""
