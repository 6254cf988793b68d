"""Settings: what may be set, where values come from, which source wins."""
