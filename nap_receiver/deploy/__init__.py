"""The story: from a push to a release that serves (`receiver`), and what else changes an app (`operations`).

Whoever may ask for it, and how, is in `frontends`.
"""
