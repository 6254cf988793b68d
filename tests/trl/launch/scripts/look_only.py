"""Imports TRL's classes and looks at them from all sides, as telemetry, launchers and model cards do. Trains nothing."""

import copy
import dataclasses
import inspect
import json
import pickle
import sys

import trl
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

names = {
    kind.__name__: [kind.__module__, kind.__qualname__] for kind in (GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer)
}
same = all(getattr(trl, name) is getattr(sys.modules[module], name) for name, (module, _) in names.items())

config = GRPOConfig(output_dir=sys.argv[1], report_to="none", bf16=False, use_cpu=True, learning_rate=0.5)
copies = {
    "pickle": pickle.loads(pickle.dumps(config)),
    "deepcopy": copy.deepcopy(config),
}


@dataclasses.dataclass
class OwnConfig(GRPOConfig):
    extra: int = 3


class OwnTrainer(GRPOTrainer):
    pass


facts = {
    "names": names,
    "same": same,
    "types": {name: type(made) is GRPOConfig for name, made in copies.items()},
    "num_drafts": {name: made.refine_config.num_drafts for name, made in copies.items()},
    "learning_rate": {name: made.learning_rate for name, made in copies.items()},
    "own": [
        OwnConfig(output_dir=sys.argv[1], report_to="none", bf16=False, use_cpu=True, extra=4).extra,
        OwnTrainer.__mro__[1].__name__,
    ],
    "to_dict": sorted(set(config.to_dict()) - {field.name for field in dataclasses.fields(config)}),
    "source": inspect.getsource(GRPOTrainer).splitlines()[0],
    "parameters": {kind.__name__: list(inspect.signature(kind).parameters)[:2] for kind in (GRPOTrainer, RLOOTrainer)},
}
print("FACTS " + json.dumps(facts))
