"""Data types and rules: apps, releases, manifests, health checks, limits, variables.

This folder reads and writes nothing, and runs no program.
"""
