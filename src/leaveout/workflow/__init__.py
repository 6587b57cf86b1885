"""The workflow's own Python: which jobs there are, what decides each, and what is out of date."""
