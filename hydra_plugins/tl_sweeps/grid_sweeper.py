"""hydra/sweeper=grid: Hydra's own sweeper, for which a key need not be there for all of the options that are swept."""

from __future__ import annotations

from collections.abc import Sequence

# Hydra loads its own plugins anew when it looks for plugins: the class must be the one of that moment.
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override


class GridSweeper(BasicSweeper):
    """Every combination of the values given. See `tl_research.config.grid`."""

    def split_arguments(  # type: ignore[override]  # which Hydra calls on the instance, and has no need of one
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """The jobs, in batches."""
        from tl_research.config.grid import grid_jobs

        composer = GlobalHydra.instance().hydra
        assert composer is not None
        assert self.config is not None
        found = grid_jobs(composer, self.config)
        return [list(batch) for batch in self.split_overrides_to_chunks(found, max_batch_size)]

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """The door has composed them all."""
