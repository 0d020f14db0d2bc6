"""Entry points: the ssh gate, git's hook, gitolite's trigger, and the commands.

Each finds the user and the request, checks the right, and calls the folders below.
"""
