"""From a build context to an image in the registry: the builders, Dockerfiles, what builds are kept away from.

The context comes from `git`; what is done with the image is `deploy`'s.
"""
