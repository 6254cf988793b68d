"""Cells as jobs of a Ray cluster that runs already. The run folder must be the same on all of its nodes."""

# Ray has no types here: the core does not install it.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingImports=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import hashlib
import shlex
from typing import Any, Final

from refine_wrapper.errors import ConfigError
from refine_wrapper.study.ablation.cell import CellFolder

_ENDED: Final = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})


class RayJobs:
    """Submits cells to the job server of a cluster; they go on without us, and are found again by name.

    Args:
        address: Of the job server, such as ``http://127.0.0.1:8265``.

    Raises:
        ConfigError: If Ray's job client is not installed, or nobody answers there.
    """

    def __init__(self, address: str) -> None:
        try:
            from ray.job_submission import JobSubmissionClient
        except ImportError as error:
            raise ConfigError(f"refine: --ray needs Ray's job client: pip install 'ray[default]' ({error}).") from None
        try:
            self._client: Any = JobSubmissionClient(address)
        except Exception as error:  # requests', Ray's own and bare RuntimeErrors, by version
            raise ConfigError(
                f"refine: no Ray job server answers at {address}: {error}. Give the address that `ray start --head` "
                "printed for its dashboard, as in --ray http://127.0.0.1:8265."
            ) from None
        self._jobs: dict[str, str] = {job.submission_id: str(job.status.value) for job in self._client.list_jobs()}

    def start(self, folder: CellFolder) -> None:
        """Submit the cell of a folder, under a name that is new for each attempt."""
        stem, attempt = self._stem(folder), 1
        while f"{stem}-{attempt}" in self._jobs:
            attempt += 1
        command = [folder.cell().python, "-m", "refine_wrapper.study.ablation.run_cell", str(folder.path)]
        name = self._client.submit_job(entrypoint=shlex.join(command), submission_id=f"{stem}-{attempt}")
        self._jobs[name] = "PENDING"

    def running(self, folder: CellFolder) -> bool:
        """Whether a job of the cell waits or runs."""
        for name in self._names(folder):
            if self._jobs[name] not in _ENDED:
                self._jobs[name] = str(self._client.get_job_status(name).value)
                if self._jobs[name] not in _ENDED:
                    return True
        return False

    def stop(self, folder: CellFolder) -> None:
        """Stop the job of the cell."""
        for name in self._names(folder):
            if self._jobs[name] not in _ENDED:
                self._client.stop_job(name)

    def _names(self, folder: CellFolder) -> list[str]:
        return [name for name in self._jobs if name.startswith(f"{self._stem(folder)}-")]

    def _stem(self, folder: CellFolder) -> str:
        digest = hashlib.sha256(str(folder.path).encode()).hexdigest()[:12]
        return f"refine-{folder.path.name}-{digest}"
