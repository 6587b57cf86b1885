"""Banks: folders of retrained checkpoints made with a training function of the user's own.

The signatures and the folders' layout are those the field documents. What is done differently from
its implementation, and why, is in ``docs/peers.md``.
"""
