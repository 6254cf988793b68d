"""What happens to a group, round by round: one file per mode, chosen by name (``mode=NAME``)."""
