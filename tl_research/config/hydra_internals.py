"""What we use of Hydra's private package, in one place: Hydra has no public way to compose without starting an
application, to read its command line, or to change how its grid sweeper makes jobs."""

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser

__all__ = ["BasicSweeper", "Hydra", "create_config_search_path", "get_args_parser"]
