"""Compression: a graph and a plan in, a compressed graph out."""
