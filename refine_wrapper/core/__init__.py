"""What happens to a group. Knows no host and imports no heavy package."""
