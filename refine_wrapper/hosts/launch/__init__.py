"""How refinement is switched on for a command that is not edited: ``refine-wrapper run ... -- COMMAND``.

The started command gets the folder ``launch/inject`` first on its PYTHONPATH. Python imports a module named
``sitecustomize`` whenever it starts; the one in that folder first installs a hook on imports, then runs the
``sitecustomize`` that would have run without it. The hook calls an adapter's function with each host module
that the adapter named, right after that module was executed. Because all this is in the environment, it also
reaches what the command starts: launchers, shells, workers.

Why not a ``.pth`` file in site-packages, the usual way? It runs in every interpreter of the environment for
as long as the package is installed, also in those that never refine anything, and an editable install has
none. Here nothing is installed and nothing is left behind: when the command has ended, nothing has changed.

The limits: Python ignores PYTHONPATH with ``-E`` and ``-I`` and runs no ``sitecustomize`` with ``-S``; a
launcher may replace PYTHONPATH; and the interpreter of another environment may not have this package. Then
the command runs as it would have run alone. So ``run`` does not trust: it asks for a report of the first
refinement, and fails without one.

- ``inject/sitecustomize.py`` starts the hook,
- ``hook`` patches host modules as they are imported,
- ``report`` is where a process says that it really refined,
- ``environment`` is what the command finds in its environment,
- ``child`` runs it: signals, exit code.

The first three run in every Python process of the command, so they import little: no pydantic, no pluggy.
"""
