"""Connections to machines: this one, and others over SSH."""
