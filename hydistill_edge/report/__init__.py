"""The run as one readable page."""
