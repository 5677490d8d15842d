"""The interfaces that plugin authors implement, one file a kind, and the bases of their specs."""
