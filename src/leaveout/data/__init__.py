"""Raw data: where the samples come from, before any normalising."""
