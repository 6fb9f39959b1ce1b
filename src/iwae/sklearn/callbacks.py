"""Callbacks by scikit-learn's convention, which it has from version 1.9 on."""

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
        """The reports of a fit of at most `max_iter` epochs, each a task for its callbacks.

        They end after an epoch at which a callback returns True.

        Args:
            learnt: the attributes of the estimator as if fit had ended now.
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
        """Nothing, as this version has no callbacks."""

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
