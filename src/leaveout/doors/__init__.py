"""Doors of Python: attribute a model of your own, and benchmark a problem of your own."""
