# What all rules share. The configuration is checked here; every helper is a one-line call into the package.
import os
import sys
from pathlib import Path
from shlex import quote

from snakemake.exceptions import WorkflowError

from leaveout.config.metric_names import PANELS
from leaveout.errors import LeaveoutError
from leaveout.store import leftovers
from leaveout.workflow import orphans, runlock
from leaveout.workflow.plan import RESULTS, named
from leaveout.workflow.planned import VARIABLE, Planned
from leaveout.workflow.request import check_folder, check_targets
from leaveout.workflow.review import refresh
from leaveout.workflow.rules import Rules
from leaveout.workflow.steps import load_plan

# the folder above the one this file's is in: another workflow's Snakefile can use this one as a module
REPOSITORY = Path(workflow.current_basedir.get_path_or_uri(secret_free=True)).parents[1]
CONFIG = "config" if REPOSITORY == Path.cwd() else REPOSITORY / "config"
AS_MODULE = Path(workflow.basedir) != REPOSITORY / "workflow"


def literally(text):
    """Double the braces of a text: Snakemake fills in what stands between them."""
    return text.replace("{", "{{").replace("}", "}}")


# What lies here and is not what today's configuration and code make, is made again, wherever it came from. The jobs on a
# cluster parse this file too, and are told what the run was planned with.
STALE, SETTLED, DIGEST = {}, frozenset(), os.environ.get(VARIABLE, "")
try:
    PLAN = load_plan(named(config, workflow.config_settings.config or {}), CONFIG)
    if workflow.is_main_process:
        check_folder(Path.cwd())
        if not AS_MODULE:
            check_targets(sys.argv, RESULTS, {path for job in PLAN.jobs for path in job.makes})
        REVIEW = refresh(PLAN.jobs, PLAN.config.exact)
        STALE, SETTLED = REVIEW.stale, REVIEW.settled
        PLANNED = Planned.of(PLAN.jobs)
        os.environ[VARIABLE] = DIGEST = PLANNED.digest()
        if AS_MODULE:  # what the Snakefile does at the start of a run is not done then
            PLANNED.keep()
except LeaveoutError as error:
    # what is wrong and what to do, without the places in our code that noticed
    raise WorkflowError(str(error)) from None


def settled():
    """Return the files that no job has to make anew: none where the command line forces jobs."""
    forced = workflow.dag_settings
    return frozenset() if forced.forceall or forced.forcerun or forced.forcetargets else SETTLED


RULES = Rules(PLAN, STALE, settled, DIGEST)
reads, log, asks, command = RULES.reads, RULES.log, RULES.asks, RULES.command
JOB = "{params.command} 2> {log:q}"
ENVIRONMENT = literally(str(REPOSITORY / "workflow/envs/leaveout.yaml"))


pathvars:
    **PLAN.folders,


# Jobs find the `leaveout` of the environment Snakemake runs in, activated or not. Where the configuration lies and
# which device is used decide no result.
shell.prefix(
    literally(
        f"export PATH={quote(str(Path(sys.executable).parent))}:$PATH"
        f" LEAVEOUT_CONFIG={quote(str(CONFIG))} LEAVEOUT_DEVICE={PLAN.config.device}; "
    )
)


wildcard_constraints:
    setting="|".join(PLAN.settings),
    method="|".join(PLAN.methods),
    metric="|".join(PANELS),
    truth="lds|loo|pbrf",
    kind="full|half",
    chunk=r"\d+(-\d+)?",
    params=r"[^/]+",
