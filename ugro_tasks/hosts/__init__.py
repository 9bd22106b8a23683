"""Machines to run things on: this one, and others by SSH."""
