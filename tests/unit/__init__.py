"""Tests that start no program: they take less than a minute together."""
