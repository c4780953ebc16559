import numpy as np
from joblib import parallel_config
from sklearn import datasets, model_selection, svm

import jobfleet  # makes "dask" mean jobfleet, nothing else

X, y = datasets.load_digits(return_X_y=True)
space = {"C": np.logspace(-6, 6, 13), "gamma": np.logspace(-8, 8, 17)}
space |= {"tol": np.logspace(-4, -1, 4), "class_weight": [None, "balanced"]}
search = model_selection.RandomizedSearchCV(svm.SVC(kernel="rbf"), space, n_iter=50, cv=3, random_state=0)
with parallel_config("dask", scatter=[X, y]):
    search.fit(X, y)
print(f"{search.best_score_:.4f}", search.best_params_)
