"""Which upstream tests are left out, each with its reason.

A left-out test is still run and must fail; one that passes is a stale exclusion and fails the run. ``run=False`` is for
those that would hang, and for those that pass or fail by chance.
"""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Exclusion:
    """One left-out test, or several whose names match."""

    test: str
    """``file::test`` for all its parameters, ``file::test[params]`` for one; ``*`` stands for anything."""
    reason: str
    instead: str | None = None
    """The test in replacements.py that checks the behaviour the upstream test was after."""
    run: bool = True

    def matches(self, nodeid):
        """Tell whether this exclusion is about that test."""
        pattern = re.escape(self.test).replace(r"\*", ".*")
        return re.fullmatch(pattern, nodeid) or re.fullmatch(pattern, nodeid.partition("[")[0])


def _exclusions(file, *entries):
    """Make the exclusions of one file from ``(test, reason)`` or ``(test, reason, keywords)``."""
    return tuple(Exclusion(f"{file}::{test}", reason, **dict(*rest)) for test, reason, *rest in entries)


JOBLIB_DASK = _exclusions(
    "joblib/test/test_dask.py",
    (
        "test_dask_backend_uses_autobatching",
        "private names: asks for the batching of AutoBatchingMixin, and reads its attributes",
        {"instead": "test_short_tasks_travel_together"},
    ),
    (
        "test_no_undesired_distributed_cache_hit",
        "mechanism: counts Dask's scatter events, which are also how jobfleet sends its own code",
        {"instead": "test_a_changed_argument_is_sent_anew"},
    ),
    (
        "test_manual_scatter",
        "asks for as many picklings of a scattered object as Dask makes, three; jobfleet makes one",
        {"instead": "test_scattered_objects_are_pickled_no_more_than_by_dask"},
    ),
    (
        "test_auto_scatter",
        "mechanism: wants arguments of 10 kB scattered; below max_nbytes they are cheaper inside the message",
        {"instead": "test_a_large_argument_is_held_once_by_a_worker"},
    ),
    ("test_errors", "wants an error when there is no client; jobfleet starts a cluster then"),
)

JOBLIB_PARALLEL = _exclusions(
    "joblib/test/test_parallel.py",
    (
        "test_nested_loop[loky-dask]",
        'asks for "dask" in a process of loky\'s, which has never imported jobfleet and does not know the name',
    ),
    (
        "test_backend_nesting_level",
        "wants level 1 inside a task; joblib's test_dask.py::test_correct_nested_backend wants levels to start afresh",
    ),
    (
        "test_memmapping_leaks",
        "looks for the files that joblib's memmapping makes in temp_folder; jobfleet makes none",
        {"instead": "test_large_arguments_are_gone_after_a_call"},
    ),
    ("test_backend_batch_statistics_reset", "private names: reads attributes of AutoBatchingMixin"),
    (
        "test_threadpool_limitation_in_child_override",
        "sets environment variables of the client; loky starts its workers afterwards, a cluster runs already",
    ),
    (
        "test_initializer_not_reused",
        "wants new processes for new initargs; a cluster's workers stay, and are initialised anew",
        {"instead": "test_new_initargs_initialise_the_same_workers_anew"},
    ),
)

# What follows fails under loky in the same way: it was compared test by test.
COPY = "works on a copy: the test looks in its own process for what a task did to an object"
REGISTRY = "works on a copy: the estimators record in a list of the client's how they were called"
FLOAT64 = "n_jobs > 1: scikit-learn's parallel sparse coding gives float64 for float32, in threads too"
LAST_BIT = "n_jobs > 1: scikit-learn's parallel distances differ in the last bit, in threads too"
ANY_ORDER = "n_jobs > 1: the threads of a forest's predict_proba add up in any order, whatever the backend"
GENERATOR = "does not pickle: the task holds a generator"


def _in_sklearn(reason, *tests, run=True):
    """Make exclusions of several tests for one reason."""
    return tuple(Exclusion(f"sklearn/{test}", reason, run=run) for test in tests)


def _one_each(test, *params):
    """Name a test with each of these parameters."""
    return tuple(f"{test}[{param}]" for param in params)


SKLEARN = (
    *_in_sklearn(
        COPY,
        "linear_model/tests/test_logistic.py::test_logistic_cv_mock_scorer",
        "model_selection/tests/test_search.py::test_search_callbacks_receive_search_instance",
        "model_selection/tests/test_search.py::test_searchcv_raise_warning_with_non_finite_score",
        "model_selection/tests/test_successive_halving.py::test_base_estimator_inputs",
        "model_selection/tests/test_successive_halving.py::test_cv_results",
        "model_selection/tests/test_validation.py::test_cross_val_score_score_func",
        "tests/test_pipeline.py::test_feature_union",
        "tests/test_pipeline.py::test_n_features_in_feature_union",
    ),
    *_in_sklearn(
        REGISTRY,
        "compose/tests/test_column_transformer.py::test_metadata_routing_for_column_transformer",
        "ensemble/tests/test_bagging.py::test_metadata_routing_with_dynamic_method_selection",
        "ensemble/tests/test_stacking.py::test_metadata_routing_for_stacking_estimators",
        "ensemble/tests/test_voting.py::test_metadata_routing_for_voting_estimators",
        "model_selection/tests/test_search.py::test_multi_metric_search_forwards_metadata",
        "model_selection/tests/test_validation.py::test_learning_curve_exploit_incremental_learning_routing",
        *_one_each(
            "model_selection/tests/test_validation.py::test_validation_functions_routing",
            "cross_validate-*",
            "cross_val_score-*",
            "cross_val_predict-*",
            "learning_curve-*",
            "validation_curve-*",
        ),
        *_one_each(
            "tests/test_metaestimators_metadata_routing.py::test_metadata_is_routed_correctly_to_scorer",
            "GridSearchCV",
            "HalvingGridSearchCV",
            "HalvingRandomSearchCV",
            "LogisticRegressionCV",
            "RFECV",
            "RandomizedSearchCV",
            "RidgeCV1",
            "RidgeClassifierCV1",
            "SequentialFeatureSelector",
            "TunedThresholdClassifierCV",
        ),
        "tests/test_metaestimators_metadata_routing.py::test_metadata_routed_to_sub_estimator_in_pipeline"
        "[SequentialFeatureSelector]",
        *_one_each(
            "tests/test_metaestimators_metadata_routing.py::test_setting_request_on_sub_estimator_removes_error",
            "BaggingClassifier",
            "BaggingRegressor",
            "CalibratedClassifierCV",
            "MultiOutputClassifier",
            "MultiOutputRegressor",
            "OneVsOneClassifier",
            "OneVsRestClassifier",
            "OutputCodeClassifier",
            "SequentialFeatureSelector",
        ),
        "tests/test_pipeline.py::test_feature_union_metadata_routing",
    ),
    *_in_sklearn(
        FLOAT64,
        "decomposition/tests/test_dict_learning.py::test_dict_learning_dtype_match[float32-float32-*]",
        "decomposition/tests/test_dict_learning.py::test_dict_learning_online_dtype_match[float32-float32-*]",
        *_one_each(
            "decomposition/tests/test_dict_learning.py::test_dictionary_learning_dtype_match",
            "float32-float32-lars-*",
            "float32-float32-lasso_cd-*",
            "float32-float32-lasso_lars-*",
            "float32-float32-omp-*",
        ),
        *_one_each(
            "decomposition/tests/test_dict_learning.py::test_minibatch_dictionary_learning_dtype_match",
            "float32-float32-lars-*",
            "float32-float32-lasso_cd-*",
            "float32-float32-lasso_lars-*",
            "float32-float32-omp-*",
        ),
        *_one_each(
            "decomposition/tests/test_dict_learning.py::test_sparse_coder_dtype_match",
            "float32-lars",
            "float32-lasso_cd",
            "float32-lasso_lars",
            "float32-omp",
        ),
        *_one_each(
            "decomposition/tests/test_dict_learning.py::test_sparse_encode_dtype_match",
            "float32-lars",
            "float32-lasso_cd",
            "float32-lasso_lars",
            "float32-omp",
        ),
    ),
    *_in_sklearn(
        ANY_ORDER,
        "tests/test_multioutput.py::test_multi_output_classification",
        run=False,
    ),
    *_in_sklearn(
        "n_jobs > 1: of two tasks that fail at the same moment the one heard of first is raised, whatever the backend",
        "model_selection/tests/test_validation.py::test_learning_curve_params",
        run=False,
    ),
    *_in_sklearn(
        LAST_BIT,
        *_one_each(
            "metrics/tests/test_pairwise.py::test_numeric_pairwise_distances_datatypes",
            "float64-Y is X-correlation",
            "float64-Y is X-cosine",
        ),
    ),
    *_in_sklearn(
        GENERATOR,
        "linear_model/tests/test_ridge.py::test_ridge_gcv_sample_weights",
        "model_selection/tests/test_search.py::test_grid_search_cv_splits_consistency",
    ),
    *_in_sklearn(
        "does not pickle: the callback under test sends a class that is local to the test with plain pickle",
        "model_selection/tests/test_search.py::test_search_callbacks_with_partial_fit_failures",
    ),
    *_in_sklearn(
        "does not unpickle: the exception has keyword arguments only",
        "model_selection/tests/test_validation.py::test_passed_unrequested_metadata[cross_val_score-*]",
    ),
    *_in_sklearn(
        "does not come back the same: scikit-learn asks whether a dtype *is* np.dtype(object), a pickled one never is",
        "neighbors/tests/test_neighbors.py::test_radius_neighbors_regressor",
    ),
)

EXCLUSIONS = {"joblib-dask": JOBLIB_DASK, "joblib-parallel": JOBLIB_PARALLEL, "sklearn": SKLEARN}
