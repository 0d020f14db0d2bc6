"""How nap is asked: the gate for ssh, git's hook, gitolite's trigger, the command line and its commands.

Each finds out who asks for what, and calls the folders below.
"""
