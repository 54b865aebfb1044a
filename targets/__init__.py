"""Inference runtimes as targets: build on the host, run on the device, prove and measure."""
