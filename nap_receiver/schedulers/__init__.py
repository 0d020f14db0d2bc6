"""Schedulers: run instances. The interface, one module per scheduler, units, and placement.

Not here: the decision to start or stop an instance (`deploy`).
"""
