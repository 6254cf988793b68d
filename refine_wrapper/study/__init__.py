"""Everything that looks at runs from outside: evaluation, ablation, report."""
