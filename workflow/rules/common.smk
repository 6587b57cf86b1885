# What all rules share. The configuration is checked here; every helper is a one-line call into the package.
import sys
from pathlib import Path
from shlex import quote

from snakemake.exceptions import WorkflowError

from leaveout import leftovers, orphans, runlock
from leaveout.errors import LeaveoutError
from leaveout.metric_names import PANELS
from leaveout.workflow import TABLES, Plan

REPOSITORY = Path(workflow.basedir).parent
CONFIG = "config" if REPOSITORY == Path.cwd() else REPOSITORY / "config"
try:
    PLAN = Plan.load(config, CONFIG)
except LeaveoutError as error:
    # what is wrong and what to do, without the places in our code that noticed
    raise WorkflowError(str(error)) from None

# What lies here and is not what today's configuration and code make, is made again, wherever it came from. The jobs on a
# cluster parse this file too, and are told what to do.
STALE, SETTLED = {}, frozenset()
if workflow.is_main_process:
    from leaveout import freshness

    try:
        REVIEW = freshness.refresh(PLAN.steps(f"{CONFIG}/published.csv"))
        STALE, SETTLED = REVIEW.stale, REVIEW.settled
    except LeaveoutError as error:
        raise WorkflowError(str(error)) from None


def if_stale(output):
    """Return an input function: a file newer than the output, if that is stale."""
    return PLAN.if_stale(STALE, output)


def settled():
    """Return the files that no job has to make anew: none where the command line forces jobs."""
    forced = workflow.dag_settings
    return frozenset() if forced.forceall or forced.forcerun or forced.forcetargets else SETTLED


def if_needed(output, **wanted):
    """Return named inputs: what is not here is asked for only if the output has to be made.

    Every rule that others feed with such inputs has it, so that a job at rest is never set off by a part of them.
    """
    return unpack(PLAN.if_needed(settled, output, wanted))


GPUS = 1 if PLAN.config.device == "cuda" else 0

# Jobs find the `leaveout` of the environment Snakemake runs in, activated or not. Where the configuration lies and
# which device is used decide no result, so they are no parameters: a job must not run again because of them.
shell.prefix(
    f"export PATH={quote(str(Path(sys.executable).parent))}:$PATH"
    f" LEAVEOUT_CONFIG={quote(str(CONFIG))} LEAVEOUT_DEVICE={PLAN.config.device}; "
)


wildcard_constraints:
    setting="|".join(PLAN.settings),
    method="|".join(PLAN.methods),
    metric="|".join(PANELS),
    table="|".join(PLAN.paged),
    kind="full|half",
    chunk=r"\d+(-\d+)?",
    params=r"[^/]+",
