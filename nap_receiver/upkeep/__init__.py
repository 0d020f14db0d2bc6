"""`nap doctor`: find problems and repair them, with one module for each group of checks.

It imports all folders below; none of them imports it.
"""
