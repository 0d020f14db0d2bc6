"""Tests on real programs: an engine, etcd, a registry, sshd, a router. `make test-fast` runs those that start none."""
