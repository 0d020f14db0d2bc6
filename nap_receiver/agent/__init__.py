"""The agent: the program on a machine that runs its instances through the engine, and announces those that are good.

Not here: which instances are to run, and where (`schedulers`, `deploy`).
"""
