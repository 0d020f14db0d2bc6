"""Deploys: from a push to a live release (`receiver`), and all other changes of an app (`operations`).

Not here: commands and access checks, see `frontends`.
"""
