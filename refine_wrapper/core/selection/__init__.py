"""Which draft goes into the prompt: one file per policy, chosen by name (``selector=NAME``)."""
