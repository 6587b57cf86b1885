"""Metrics: how well scores predict what leaving data out does, and how sure that is."""
