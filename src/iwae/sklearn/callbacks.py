"""Callbacks by the convention of scikit-learn 1.9 and newer."""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from iwae.training.loop import Report

__all__ = ["CallbackSupportMixin", "with_callbacks", "with_tasks"]

if importlib.util.find_spec("sklearn.callback") is not None:
    from sklearn.callback import CallbackSupportMixin, with_callbacks

    def with_tasks(
        estimator: Any, X: Any, reports: Iterator[Report], learnt: Callable[[], Mapping[str, Any]]
    ) -> Iterator[Report]:
        """The reports of a fit of at most `max_iter` epochs, each of which is a task of callbacks.

        They end with the epoch in which a callback returns True.

        Args:
            estimator: the estimator in `fit`.
            X: the data of the fit.
            reports: the reports of training.
            learnt: a function that returns the attributes which the estimator would have if `fit`
                ended now.
        """
        fit = estimator._init_callback_context(max_subtasks=estimator.max_iter)
        fit.call_on_fit_task_begin(estimator=estimator, X=X)
        epoch = None
        for report in reports:
            if epoch is None:
                epoch = fit.subcontext("epoch").call_on_fit_task_begin(estimator=estimator, X=X)
            yield report
            if report.epoch_done:
                facts = {"estimator": estimator, "X": X, "reconstruction_attributes": learnt}
                if epoch.call_on_fit_task_end(**facts):
                    break
                epoch = None
        fit.call_on_fit_task_end(estimator=estimator, X=X, reconstruction_attributes=learnt)

else:

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """A stand-in for versions without callbacks."""

    def with_callbacks(method: Any) -> Any:
        """The method."""
        return method

    def with_tasks(
        estimator: Any,  # noqa: ARG001
        X: Any,  # noqa: ARG001
        reports: Iterator[Report],
        learnt: Callable[[], Mapping[str, Any]],  # noqa: ARG001
    ) -> Iterator[Report]:
        """The reports."""
        return reports
