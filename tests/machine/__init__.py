"""Tests on real programs: an engine, etcd, a registry, sshd, a router."""
