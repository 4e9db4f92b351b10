"""Many cameras on one model."""
