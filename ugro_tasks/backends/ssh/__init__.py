"""Ranks over SSH: planned, started together, followed and stopped."""
