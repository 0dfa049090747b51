"""Runs that the repository holds: read, compared with the present run, and shown as tables and figures."""
