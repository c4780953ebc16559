"""scikit-learn's own tests with the backend under test, two workers wide, as the backend of every ``Parallel``."""

import joblib
import pytest

MODULES = [
    "model_selection.tests.test_classification_threshold",
    "model_selection.tests.test_search",
    "model_selection.tests.test_successive_halving",
    "model_selection.tests.test_validation",
    "ensemble._hist_gradient_boosting.tests.test_binning",
    "ensemble._hist_gradient_boosting.tests.test_gradient_boosting",
    "ensemble._hist_gradient_boosting.tests.test_warm_start",
    "ensemble.tests.test_bagging",
    "ensemble.tests.test_common",
    "ensemble.tests.test_forest",
    "ensemble.tests.test_iforest",
    "ensemble.tests.test_stacking",
    "ensemble.tests.test_voting",
    "tests.test_multioutput",
    "tests.test_multiclass",
    "tests.test_calibration",
    "feature_selection.tests.test_from_model",
    "feature_selection.tests.test_mutual_info",
    "feature_selection.tests.test_rfe",
    "feature_selection.tests.test_sequential",
    "inspection.tests.test_partial_dependence",
    "inspection.tests.test_permutation_importance",
    "decomposition.tests.test_dict_learning",
    "decomposition.tests.test_online_lda",
    "covariance.tests.test_graphical_lasso",
    "compose.tests.test_column_transformer",
    "tests.test_pipeline",
    "linear_model.tests.test_common",
    "linear_model.tests.test_coordinate_descent",
    "linear_model.tests.test_least_angle",
    "linear_model.tests.test_logistic",
    "linear_model.tests.test_omp",
    "linear_model.tests.test_ridge",
    "linear_model.tests.test_sag",
    "linear_model.tests.test_sparse_coordinate_descent",
    "linear_model.tests.test_theil_sen",
    "utils.tests.test_parallel",
    "metrics.tests.test_pairwise",
    "cluster.tests.test_dbscan",
    "cluster.tests.test_hdbscan",
    "cluster.tests.test_mean_shift",
    "cluster.tests.test_optics",
    "neighbors.tests.test_graph",
    "neighbors.tests.test_kd_tree",
    "neighbors.tests.test_lof",
    "neighbors.tests.test_neighbors",
    "neighbors.tests.test_neighbors_pipeline",
    "manifold.tests.test_isomap",
    "manifold.tests.test_locally_linear",
    "manifold.tests.test_spectral_embedding",
    "gaussian_process.tests.test_gpc",
    "tests.test_metaestimators",
    "tests.test_metaestimators_metadata_routing",
    "tests.test_config",
    "semi_supervised.tests.test_self_training",
    "preprocessing.tests.test_target_encoder",
    "linear_model.tests.test_base",
]

THOUSANDS_OF_CALLS = {
    "test_binning.py::test_subsampled_weighted_vs_repeated_equivalence",
    "test_mean_shift.py::test_max_iter",
    "test_mean_shift.py::test_mean_shift",
    "test_mean_shift.py::test_meanshift_predict",
    "test_online_lda.py::test_lda_empty_docs",
    "test_optics.py::test_bad_extract",
    "test_optics.py::test_close_extract",
    "test_optics.py::test_cluster_hierarchy",
    "test_optics.py::test_dbscan_optics_parity",
    "test_optics.py::test_extract_xi",
    "test_partial_dependence.py::test_partial_dependence_dataframe",
    "test_partial_dependence.py::test_partial_dependence_feature_type",
    "test_partial_dependence.py::test_partial_dependence_non_null_weight_idx",
    "test_sequential.py::test_n_features_to_select_stopping_criterion",
    "test_target_encoder.py::test_fit_transform_not_associated_with_y_if_ordinal_categorical_is_not",
}
"""Not run: two thirds of all calls of these files, and the same ones over and over."""


def targets(package):
    """What pytest is to run."""
    return [str(package / "sklearn" / f"{module.replace('.', '/')}.py") for module in MODULES]


@pytest.fixture(autouse=True)
def _selected(cluster):
    """Select the backend; an explicit choice also goes before scikit-learn's preference for threads."""
    with joblib.parallel_config("dask", n_jobs=2):
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Take out what would take up most of the time."""
    too_long = [item for item in items if f"{item.path.name}::{item.originalname}" in THOUSANDS_OF_CALLS]
    config.hook.pytest_deselected(items=too_long)
    items[:] = [item for item in items if item not in too_long]
