"""The Docker Engine: client, bodies of create calls, nap's own daemon, control groups, login to the registry.

Not here: which containers run (`schedulers`, `deploy`), and what is built (`build`).
"""
