"""What a job asks a scheduler for: what it should take, with a margin, and more at each attempt.

The estimates are those of :mod:`leaveout.workflow.costs`, on the hardware the setting names. A job
that meets its limit is tried again with twice as much; how often, the profile says. Locally none of
it is enforced.
"""

from __future__ import annotations

import math

from leaveout.workflow.costs import Job

MEMORY_MARGIN, LEAST_MB = 1.5, 1000
"""The model of memory is good to a fifth or so; libraries differ more than that."""

TIME_MARGIN, LEAST_MINUTES = 3.0, 15
"""The model of time is good to a factor of two, on the hardware it names."""


def mem_mb(job: Job, attempt: int) -> int:
    """Return the memory of an attempt (from 1) in MB: doubled each time."""
    return max(LEAST_MB, math.ceil(MEMORY_MARGIN * job.memory / 1e6)) << (attempt - 1)


def minutes(job: Job, attempt: int) -> int:
    """Return the time limit of an attempt (from 1) in minutes: doubled each time."""
    return max(LEAST_MINUTES, math.ceil(TIME_MARGIN * job.seconds / 60)) << (attempt - 1)
