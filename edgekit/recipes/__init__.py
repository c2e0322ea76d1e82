"""Samples, preprocessing and metrics: how raw data becomes model inputs, and how outputs are scored."""
