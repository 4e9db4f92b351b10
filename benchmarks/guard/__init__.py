"""What the guard notices, what it takes for harm, and what it does about it."""
