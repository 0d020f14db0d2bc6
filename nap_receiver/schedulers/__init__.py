"""What runs instances: the interface, one module for each scheduler, the units they are given, and placement.

When an instance starts or stops is decided in `deploy`.
"""
