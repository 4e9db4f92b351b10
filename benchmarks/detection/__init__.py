"""How often drift detectors are wrong, and how late."""
