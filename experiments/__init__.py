"""Experiments: declared per network, run by one command, reported as tables and plots."""
