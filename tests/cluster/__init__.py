"""Tests on a fleet cluster: a stand-in for fleetctl, and the real one where FLEET_BIN says where it is."""
