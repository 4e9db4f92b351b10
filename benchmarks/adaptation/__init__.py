"""What adaptation gains, and where it hurts."""
