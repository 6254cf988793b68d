"""What happens to a group after Stage 1: one file per policy, chosen by name (``plan=NAME``)."""
