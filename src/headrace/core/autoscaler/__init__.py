"""Dynamic scaling: how many replicas, which one goes, when a drain is over."""
