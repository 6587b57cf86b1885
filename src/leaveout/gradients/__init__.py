"""Per-sample gradients: factored where layers are linear, formed in chunks elsewhere."""
