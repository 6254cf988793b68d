"""``refine-wrapper report``: one HTML page of a run that needs no server, no network and no second file.

``run_folder`` finds out what there is; a trace by itself (``trace_table``) gives a results table of the same form.
``curves`` and ``tables`` say what it shows, ``groups`` samples groups, ``page`` writes it all.
"""

from refine_wrapper.study.report.page import write_report

__all__ = ["write_report"]
