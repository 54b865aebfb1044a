"""Calibration: which images, which ranges, which scheme, how good."""
