"""Lets the tests of this folder import ``roi_align_cases``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
