"""Builds: turn a build context into an image in the registry, and isolate the build.

Not here: the build context (`git`), and the deploy of the image (`deploy`).
"""
