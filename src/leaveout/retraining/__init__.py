"""Ground truth the honest way: leave data out, train again, look."""
