"""Curvature of the mean training loss: products with it, and its inverse."""
