# %% 1 solution
X_, _ = laws.gaussian(300, 10, 1.0, np.random.default_rng(seed))
squared = convex.fit(X_, X_[:, 0] + np.random.default_rng(1).normal(size=300), loss=convex.SQUARED)
exact_up_to = 1

# %% 1 wrong
squared = convex.fit(*laws.gaussian(300, 10, 1.0, np.random.default_rng(seed)))  # still the logistic loss
exact_up_to = 1

# %% 2 solution
strong = measured(SWEEPS["n", "balanced"], signal=3.0)
growth = strong[:2, -1].mean(1) / found["n", "balanced"][:2, -1].mean(1)

# %% 2 wrong
strong = measured(SWEEPS["n", "balanced"], signal=3.0)
growth = strong[:2, -1].mean(1) / found["n", "few"][:2, -1].mean(1)  # another d and k

# %% 3 solution
iris = tables.load("iris", 0.7, seed)
of_iris = convex.fit(iris.X, iris.y, ridge=1.0)
out = np.flatnonzero(iris.y == 0)[10:][None]
newton_ = convex.newton_step(of_iris, out) @ iris.asked.T
next_, refit_ = convex.next_order(of_iris, out) @ iris.asked.T, convex.refit(of_iris, out) @ iris.asked.T
predicted = np.linalg.norm(newton_ - next_) / np.linalg.norm(next_)
observed = np.linalg.norm(newton_ - refit_) / np.linalg.norm(refit_)

# %% 3 wrong
iris = tables.load("iris", 0.7, seed)
of_iris = convex.fit(iris.X, iris.y, ridge=1.0)
out = np.flatnonzero(iris.y == 0)[:10][None]  # the ten that should have stayed
newton_ = convex.newton_step(of_iris, out) @ iris.asked.T
next_, refit_ = convex.next_order(of_iris, out) @ iris.asked.T, convex.refit(of_iris, out) @ iris.asked.T
predicted = np.linalg.norm(newton_ - next_) / np.linalg.norm(next_)
observed = np.linalg.norm(newton_ - refit_) / np.linalg.norm(refit_)


# %% 4 solution
def with_ridge(times, r, size=20 if small else 40):
    X_, y_ = laws.gaussian(max(times, 10) * size, size, 1.0, rng_ := np.random.default_rng([seed, 31, r, times]))
    n_ = times * size
    fitted = convex.fit(X_[:n_], y_[:n_], ridge=0.1 * n_)
    out = CHOICES["random"](fitted, 10, sets, rng_)
    errors_, apart_ = convex.errors(fitted, out), convex.influence(fitted, out) - convex.rescaled_influence(fitted, out)
    means = [errors_[name].mean() for name in convex.METHODS]
    return np.array([*means, np.linalg.norm(apart_, axis=1).mean()]) / errors_["change"].mean()


proportional = np.array([[with_ridge(times, r) for r in range(replicates)] for times in LADDER])


# %% 4 wrong
def with_ridge(times, r, size=20 if small else 40):
    X_, y_ = laws.gaussian(max(times, 10) * size, size, 1.0, rng_ := np.random.default_rng([seed, 31, r, times]))
    n_ = times * size
    fitted = convex.fit(X_[:n_], y_[:n_], ridge=0.1 * size)  # grows with d, not with n
    out = CHOICES["random"](fitted, 10, sets, rng_)
    errors_, apart_ = convex.errors(fitted, out), convex.influence(fitted, out) - convex.rescaled_influence(fitted, out)
    means = [errors_[name].mean() for name in convex.METHODS]
    return np.array([*means, np.linalg.norm(apart_, axis=1).mean()]) / errors_["change"].mean()


proportional = np.array([[with_ridge(times, r) for r in range(replicates)] for times in LADDER])
