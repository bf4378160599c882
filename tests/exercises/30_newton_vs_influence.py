# %% 1 solution
X_, _ = laws.gaussian(300, 10, 1.0, np.random.default_rng(seed))
squared = convex.fit(X_, X_[:, 0] + np.random.default_rng(1).normal(size=300), loss=convex.SQUARED)
exact_up_to = 1

# %% 1 wrong
squared = convex.fit(*laws.gaussian(300, 10, 1.0, np.random.default_rng(seed)))  # still the logistic loss
exact_up_to = 1

# %% 2 solution
balanced = ("n", "balanced")
strong = mean_errors(SWEEPS[balanced], signal=3.0)
growth = [strong[name][-1].mean() / sweep_errors[balanced][name][-1].mean() for name in LAWS.values()]

# %% 2 wrong
strong = mean_errors(SWEEPS["n", "balanced"], signal=3.0)
other = sweep_errors["n", "few"]  # another d and k
growth = [strong[name][-1].mean() / other[name][-1].mean() for name in LAWS.values()]

# %% 3 solution
iris = tables.load("iris", 0.7, seed)
of_iris = convex.fit(iris.X, iris.y, ridge=1.0)
leaving = np.flatnonzero(iris.y == 0)[10:][None]
newton = convex.newton_step(of_iris, leaving) @ iris.held_out.T
next_order = convex.next_order(of_iris, leaving) @ iris.held_out.T
refitted = convex.refit(of_iris, leaving) @ iris.held_out.T
predicted = np.linalg.norm(newton - next_order) / np.linalg.norm(next_order)
observed = np.linalg.norm(newton - refitted) / np.linalg.norm(refitted)

# %% 3 wrong
iris = tables.load("iris", 0.7, seed)
of_iris = convex.fit(iris.X, iris.y, ridge=1.0)
leaving = np.flatnonzero(iris.y == 0)[:10][None]  # the ten that should have stayed
newton = convex.newton_step(of_iris, leaving) @ iris.held_out.T
next_order = convex.next_order(of_iris, leaving) @ iris.held_out.T
refitted = convex.refit(of_iris, leaving) @ iris.held_out.T
predicted = np.linalg.norm(newton - next_order) / np.linalg.norm(next_order)
observed = np.linalg.norm(newton - refitted) / np.linalg.norm(refitted)

# %% 4 solution
proportional = np.concatenate([relatives([(times, 0.1 * times * ridge_d)]) for times in LADDER])

# %% 4 wrong
proportional = np.concatenate([relatives([(times, 0.1 * ridge_d)]) for times in LADDER])  # grows with d, not with n
