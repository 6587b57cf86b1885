"""Architectures, one file each, and the one function that builds them."""
