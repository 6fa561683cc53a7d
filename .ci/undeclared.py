"""Print the installed packages that a wheel does not need.

Usage: undeclared.py REPORT, where REPORT was written by
``pip install --dry-run --ignore-installed --report REPORT WHEEL``. It lists what pip would put into an empty
environment. pip itself is not printed. The wheel's own package is, because the checkout provides it so far.
"""

import json
import sys
from importlib.metadata import distributions
from pathlib import Path

from packaging.utils import canonicalize_name

report = json.loads(Path(sys.argv[1]).read_text())
dependencies = [entry["metadata"]["name"] for entry in report["install"] if not entry["requested"]]
needed = {canonicalize_name(name) for name in dependencies}
installed = {canonicalize_name(distribution.name) for distribution in distributions()}
print(*sorted(installed - needed - {"pip"}))
