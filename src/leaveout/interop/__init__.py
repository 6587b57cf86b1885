"""Ground truth handed over to other libraries, and taken from them."""
