# What all rules share. The configuration is checked here; every helper is a one-line call into the package.
import os
import sys
from pathlib import Path

from leaveout import runlock
from leaveout.workflow import Plan

# jobs find the `leaveout` of the environment Snakemake runs in, activated or not
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

CONFIG = (
    os.path.relpath(Path(workflow.basedir).parent / "config")
    if Path(workflow.basedir).parent == Path.cwd()
    else Path(workflow.basedir).parent / "config"
)
PLAN = Plan.load(config, CONFIG)
SETTING = f"{CONFIG}/settings/{{wildcards.setting}}.yaml"
DEVICE = PLAN.config.device
GPUS = 1 if DEVICE == "cuda" else 0


wildcard_constraints:
    setting="|".join(PLAN.settings),
    method="|".join(PLAN.methods),
    metric="lds|loo",
    chunk=r"\d+",
    params=r"[^/]+",
