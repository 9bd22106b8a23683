"""A node over SSH: the way to it as OpenSSH has it, the login on it by either transport, and its commands."""
