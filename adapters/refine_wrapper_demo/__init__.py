"""``refine-wrapper demo``: real TRL on a tiny model and a task from reasoning-gym, with and without refinement.

A program of its own on top of the TRL adapter: it registers itself as a command, as any plugin can.
"""
