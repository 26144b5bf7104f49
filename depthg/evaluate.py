"""Scores of a split."""

from depthg.scoring import (  # noqa: F401
    READ_OUTS,
    EvaluationSet,
    codes_of,
    confusions,
    predict_ids,
    sample_rows,
    summarize,
    training_codes,
)
