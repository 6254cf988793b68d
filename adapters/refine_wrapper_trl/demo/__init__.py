"""`refine-wrapper demo`: real TRL on a tiny model and a task from reasoning-gym, with and without refinement."""
