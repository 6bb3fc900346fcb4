"""Hypothesis draws the same examples in every run and writes nothing into the repository.

`HYPOTHESIS_PROFILE=thorough` draws others, and many times as many.
"""

import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir

set_hypothesis_home_dir(Path(tempfile.gettempdir(), 'mmextra-hypothesis'))
common = dict(
    deadline=None,
    database=None,
    # The fixtures that all tests share put nothing into a state that an example could spoil.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile('default', derandomize=True, max_examples=30, **common)
settings.register_profile('thorough', max_examples=160, **common)
settings.load_profile(os.environ.get('HYPOTHESIS_PROFILE', 'default'))
