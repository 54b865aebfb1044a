"""Packaged device profiles."""
