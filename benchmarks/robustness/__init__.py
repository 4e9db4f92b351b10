"""What bad frames can do."""
