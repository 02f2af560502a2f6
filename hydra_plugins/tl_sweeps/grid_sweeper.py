"""hydra/sweeper=grid: Hydra's own sweeper, except that a key may exist for some of the swept options only."""

from __future__ import annotations

from collections.abc import Sequence

# Hydra loads its own plugins anew when it looks for plugins: the class must be the one of that moment.
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override


class GridSweeper(BasicSweeper):
    """Run every combination of the given values. See `tl_research.config.grid`."""

    def split_arguments(  # type: ignore[override]  # static in Hydra, which calls it on the instance
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        """Split the jobs into batches."""
        from tl_research.config.grid import grid_jobs

        composer = GlobalHydra.instance().hydra
        assert composer is not None
        assert self.config is not None
        grid = grid_jobs(composer, self.config)
        return [list(batch) for batch in self.split_overrides_to_chunks(grid, max_batch_size)]

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Do nothing: preflight has composed every job already."""
