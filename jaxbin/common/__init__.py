"""Errors, files and provenance: what every other room uses."""
