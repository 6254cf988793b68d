from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from refine_wrapper.errors import PluginError
from refine_wrapper.hosts.adapter import Adapter
from refine_wrapper.hosts.launch.environment import INJECT, child_environment, merge_patches


def test_the_folder_holds_the_sitecustomize_and_nothing_else() -> None:
    assert [path.name for path in INJECT.iterdir() if path.name != "__pycache__"] == ["sitecustomize.py"]


@pytest.mark.parametrize(
    ("before", "after"), [(None, ""), ("", ""), ("/mine", f"{os.pathsep}/mine"), (":/mine", f"{os.pathsep}:/mine")]
)
def test_the_users_pythonpath_follows_as_it_was(before: str | None, after: str) -> None:
    environ = {} if before is None else {"PYTHONPATH": before}
    child = child_environment(environ, {"num_drafts": "3"}, {"a.b": "c:d"}, "/reports")
    assert child == {
        "PYTHONPATH": f"{INJECT}{after}",
        "REFINE_WRAPPER_FLAGS": '{"num_drafts": "3"}',
        "REFINE_WRAPPER_LAUNCH": json.dumps({"patches": {"a.b": "c:d"}, "reports": "/reports"}),
    }


def test_the_plain_command_gets_the_flags_only() -> None:
    assert child_environment({"A": "b"}, {"trace_dir": Path("/t")}, {}, None) == {
        "A": "b",
        "REFINE_WRAPPER_FLAGS": '{"trace_dir": "/t"}',
    }


def _adapter(**patches: str) -> Adapter:
    return Adapter("h", "d", ("1", None), {name.replace("_", "."): target for name, target in patches.items()})


def test_patches_of_all_adapters_are_merged() -> None:
    assert merge_patches({"x": _adapter(a_b="p:q"), "y": _adapter(a_c="p:r")}) == {"a.b": "p:q", "a.c": "p:r"}


def test_two_adapters_for_one_module_are_refused() -> None:
    with pytest.raises(PluginError) as error:
        merge_patches({"x": _adapter(a_b="p:q"), "y": _adapter(a_b="p:r")})
    assert str(error.value) == (
        "refine: the adapters 'x' and 'y' both patch 'a.b'. Load only one of them (REFINE_WRAPPER_PLUGINS)."
    )
