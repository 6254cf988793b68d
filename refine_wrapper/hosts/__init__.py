"""What an adapter implements, and what it gets: seam checks, start-up, objectives, launching."""
