# %% 1 solution
_, asked_, top_ = world(share=0.3)
ratio = 0.25 * np.square(0.5 * top_.scores[0]).sum() / asked_.eps
promised = "nothing"  # between a quarter of eps and eps

# %% 1 wrong
_, asked_, top_ = world(share=0.3)
ratio = 0.25 * np.square(0.5 * top_.scores[0]).sum() / asked_.eps
promised = "accept"  # the error is below eps

# %% 2 solution
least = statement.winsor / 4
escape = (1 - least) ** statement.checks

# %% 2 wrong
least = statement.winsor  # a share of the bases, not of the trainings
escape = (1 - least) ** statement.checks
