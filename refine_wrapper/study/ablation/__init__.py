"""``refine-wrapper ablate``: does refinement help this objective, on this task, at this budget?

A plan (``plan``) becomes cells (``cell``), each a training command of its own, run here (``local``) or as Ray
jobs (``ray_jobs``); what they wrote becomes one tidy table (``table``), compared in pairs of one seed (``comparison``).
"""
