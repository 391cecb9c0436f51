"""The main job, step by step, as the command line runs it: each step is a call from Python too.

images -> extract -> acts/ -> train -> sae/ -> evaluate -> name -> report -> report/index.html
"""

from vision_sae.jobs.comparison import Comparison, compare
from vision_sae.jobs.extraction import extract_to
from vision_sae.jobs.factors import FactorReport, factor_report
from vision_sae.jobs.findings import (
    findings_as_data,
    read_findings,
    save_findings,
    share_detecting,
    summary_of,
)
from vision_sae.jobs.loading import load_sae
from vision_sae.jobs.material import Material
from vision_sae.jobs.naming import NamingConfig, detect_factors, name_sae
from vision_sae.jobs.pictures import pictures
from vision_sae.jobs.splicing import splice_sae
from vision_sae.jobs.suite import SuiteConfig, SuiteIndex, run_suite
from vision_sae.jobs.sweep import SweepIndex, train_sweep
from vision_sae.jobs.training import store_of, train_store
from vision_sae.jobs.vocabularies import known_names, open_vocabulary

__all__ = [
    "FactorReport",
    "Comparison",
    "Material",
    "NamingConfig",
    "SuiteConfig",
    "SuiteIndex",
    "SweepIndex",
    "compare",
    "detect_factors",
    "extract_to",
    "factor_report",
    "findings_as_data",
    "known_names",
    "load_sae",
    "name_sae",
    "open_vocabulary",
    "pictures",
    "read_findings",
    "run_suite",
    "save_findings",
    "share_detecting",
    "splice_sae",
    "store_of",
    "summary_of",
    "train_store",
    "train_sweep",
]
