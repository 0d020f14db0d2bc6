"""What apps, releases, manifests, health checks, limits and variables are, and which of them are accepted.

Data and rules alone: nothing is read or written here, and no program is asked.
"""
