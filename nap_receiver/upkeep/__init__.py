"""`nap doctor`: one module for each kind of thing that may be wrong, and their repair.

It looks at everything below it; nothing below it needs it.
"""
