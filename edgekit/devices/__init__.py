"""Devices: how to reach them and how to measure on them."""
