"""Attribution methods, one file each; the protocol they follow is in ``task``."""
