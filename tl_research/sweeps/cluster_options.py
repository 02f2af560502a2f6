"""What may be asked of the launchers of others, checked before anything is made: recipes, as for our own."""

from __future__ import annotations

import re
import shutil
import socket
from typing import Any, Literal, Self

from pydantic import model_validator

from tl_research.errors import InputError
from tl_research.recipe import Count, Positive, recipe


@recipe
class OnRay:
    """What may be asked of Ray: `init` and `remote`, in its own words."""

    ray: dict[str, Any]

    @model_validator(mode="after")
    def _can_be_had(self) -> Self:
        key, init, cores = "hydra.launcher.ray", self.ray["init"], self.ray["remote"].get("num_cpus")
        if not (cores is None or (isinstance(cores, int | float) and cores > 0)):
            raise InputError(f"{key}.remote.num_cpus={cores}: should be a number greater than 0 or null")
        if init.get("address") is None:
            return self
        for own in ("num_cpus", "num_gpus", "object_store_memory"):
            if init.get(own) is not None:
                raise InputError(f"{key}.init.{own}={init[own]}: the Ray at an address has its own; leave it null")
        found = re.fullmatch(r"([\w.-]+):(\d+)", str(init["address"]))
        if found:
            try:
                socket.create_connection((found[1], int(found[2])), 10).close()
            except OSError as error:  # Ray itself would try for minutes
                raise InputError(f"{key}.init.address={init['address']}: no Ray answers there ({error})") from None
        return self


@recipe
class Local:
    """What may be asked of submitit. A job is one process, so of `nodes` and `tasks_per_node` there is one."""

    submitit_folder: str
    timeout_min: Positive
    cpus_per_task: Positive | None
    gpus_per_node: Count | None
    tasks_per_node: Literal[1]
    mem_gb: Positive | None
    nodes: Literal[1]
    name: str
    stderr_to_stdout: bool


@recipe
class Slurm(Local):
    """What may be asked of Slurm."""

    gpus_per_task: Count | None
    cpus_per_gpu: Positive | None
    gres: str | None
    mem_per_cpu: str | None
    mem_per_gpu: str | None
    partition: str | None
    qos: str | None
    account: str | None
    constraint: str | None
    exclude: str | None
    comment: str | None
    signal_delay_s: Positive
    max_num_timeout: Count
    array_parallelism: Positive
    setup: list[str] | None
    additional_parameters: dict[str, Any]

    @model_validator(mode="after")
    def _is_there(self) -> Self:
        if shutil.which("srun") is None:
            raise InputError("hydra/launcher=submitit_slurm: there is no Slurm here (no srun on the PATH)")
        return self
