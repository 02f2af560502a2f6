"""python -m benchmarks NAME [ARGUMENTS]."""

import sys
from importlib import import_module
from pathlib import Path

names = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_"))
if len(sys.argv) < 2 or sys.argv[1] not in names:
    print(f"python -m benchmarks NAME, where NAME is one of: {', '.join(names)}", file=sys.stderr)
    sys.exit(2)
import_module(f"benchmarks.{sys.argv[1]}").main(sys.argv[2:])
