"""Teacher and student networks."""
