"""Reporting: tables and figures made from the metrics, nothing computed anew."""
