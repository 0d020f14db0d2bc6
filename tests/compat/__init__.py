"""Tests with other people's programs: gitolite, JGit, libgit2, an ACME authority, Debian's Caddy, pip."""
