"""The sweeper plugin of sslpl: Hydra loads plugins only from this namespace."""

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper


class GridSweeper(BasicSweeper):
    """Runs every combination of the values given, as Hydra's own sweeper."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Composes the config of each run before the first one starts, but once for all runs that differ in their seed.

        Composing takes a tenth of a second, hence minutes for a thousand runs, and a seed cannot make a config invalid.
        """
        by_settings = {tuple(o for o in overrides if not o.startswith("seed=")): overrides for overrides in batch}
        super().validate_batch_is_legal(list(by_settings.values()))
