"""Compute classification metrics, with a confidence interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tl_research.metrics.bootstrap import bootstrap_intervals
from tl_research.metrics.probabilities import softmax

LOWER_IS_BETTER = ("loss",)


def monitored(monitor: str, metrics: Mapping[str, Any]) -> str:
    """Return the metric that compares a run with others: the out-of-fold accuracy if it had no validation images."""
    return "cv_accuracy" if "cv_accuracy" in metrics and not any(key.startswith("val_") for key in metrics) else monitor


def recall_by_class(logits: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> dict[str, float | None]:
    """Compute the recall of each class by name; None for a class without images."""
    shares = recalls(logits, labels).tolist()
    return {name: None if share != share else share for name, share in zip(class_names, shares, strict=True)}


def direction(monitor: str) -> str:
    """Return `min` or `max`: the better direction of a metric, by its name."""
    return "min" if monitor.endswith(LOWER_IS_BETTER) else "max"


def accuracy_and_loss(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Compute `accuracy` and `loss` of logits `(n, k)`, as reported after each epoch."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    own = shifted[np.arange(len(labels)), labels]
    loss = np.log(np.exp(shifted).sum(axis=1)) - own
    return {"accuracy": float(np.mean(logits.argmax(axis=1) == labels)), "loss": float(loss.mean())}


def classification_metrics(
    logits: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None, *, intervals: bool = True
) -> dict[str, float]:
    """Compute the metrics of logits `(n, k)` for labels `(n,)`; `n` is at least 1.

    `loss` (mean cross-entropy, nats), `accuracy` with the 95 % Wilson interval `accuracy_low` to `accuracy_high`,
    `macro_f1`, `balanced_accuracy` (mean recall), and `auroc` and `auprc` (areas under the ROC and, as average
    precision, the precision-recall curve, one class against the rest, mean over classes). All but the first two weight
    equally the classes that occur in `labels`; both areas are absent if these are fewer than two. With `intervals` each
    but `accuracy` has the ends too of its 95 % bootstrap interval, such as `loss_low` and `loss_high`; images of one
    group (`groups` `(n,)`) are drawn together.
    """
    from scipy.stats import binomtest
    from sklearn.metrics import average_precision_score, f1_score, log_loss, roc_auc_score

    probabilities = softmax(logits)
    classes = np.arange(logits.shape[1])
    predicted = probabilities.argmax(axis=1)
    correct = int(np.sum(predicted == labels))
    interval = binomtest(correct, len(labels)).proportion_ci(0.95, method="wilson")
    metrics = {
        "loss": float(log_loss(labels, probabilities, labels=classes)),
        "accuracy": correct / len(labels),
        "accuracy_low": float(interval.low),
        "accuracy_high": float(interval.high),
        "macro_f1": float(f1_score(labels, predicted, average="macro", labels=np.unique(labels), zero_division=0)),
        "balanced_accuracy": float(np.nanmean(recalls(logits, labels))),
    }
    present = [c for c in classes if 0 < np.sum(labels == c) < len(labels)]
    if present:
        for name, area in (("auroc", roc_auc_score), ("auprc", average_precision_score)):
            metrics[name] = float(np.mean([area(labels == c, probabilities[:, c]) for c in present]))
    return metrics | (bootstrap_intervals(logits, labels, groups) if intervals else {})


def recalls(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Compute the share of right answers in each class, `(k,)`, from logits `(n, k)`; NaN for one without images."""
    number = logits.shape[1]
    right = np.bincount(labels[logits.argmax(axis=1) == labels], minlength=number)
    counts = np.bincount(labels, minlength=number)
    return np.divide(right, counts, out=np.full(number, np.nan), where=counts > 0)
