"""Packaged recipes, ready to copy."""
