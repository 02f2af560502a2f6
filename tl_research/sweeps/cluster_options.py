"""Recipes of the options of Ray's and submitit's launchers, which preflight validates as it does our own launcher's."""

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
    """Options of Ray: `init` and `remote`, with Ray's own names."""

    ray: dict[str, Any]

    @model_validator(mode="after")
    def _check_ray(self) -> Self:
        key, init, cores = "hydra.launcher.ray", self.ray["init"], self.ray["remote"].get("num_cpus")
        if not (cores is None or (isinstance(cores, int | float) and cores > 0)):
            raise InputError(f"{key}.remote.num_cpus={cores}: should be a number greater than 0 or null")
        if init.get("address") is None:
            return self
        for own in ("num_cpus", "num_gpus", "object_store_memory"):
            if init.get(own) is not None:
                raise InputError(f"{key}.init.{own}={init[own]}: the Ray at an address has its own; leave it null")
        address = re.fullmatch(r"([\w.-]+):(\d+)", str(init["address"]))
        if address:
            try:
                socket.create_connection((address[1], int(address[2])), 10).close()
            except OSError as error:  # Ray itself would try for minutes
                raise InputError(f"{key}.init.address={init['address']}: no Ray answers there ({error})") from None
        return self


@recipe
class Local:
    """Options of submitit. A job is one process, so `nodes` and `tasks_per_node` are 1."""

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
    """Options of Slurm."""

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
    def _check_slurm(self) -> Self:
        if shutil.which("srun") is None:
            raise InputError("hydra/launcher=submitit_slurm: there is no Slurm here (no srun on the PATH)")
        return self
