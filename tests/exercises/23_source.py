# %% 1 solution
rerun("rate, mu, decay = ", ("rate, mu, decay = 0.4, 0.5, 0.01", "rate, mu, decay = 0.05, 0.0, 0.01"))
rerun("unrolled_by_hand -= ")
rerun("def source_by_hand(segments")
rerun("package = unrolled(")
rerun("def source_of(segments")

# %% 1 wrong
rerun("rate, mu, decay = ", ("rate, mu, decay = 0.4, 0.5, 0.01", "rate, mu, decay = 0.05, 0.5, 0.01"))
rerun("unrolled_by_hand -= ")
rerun("def source_by_hand(segments")
rerun("package = unrolled(")
rerun("def source_of(segments")  # small steps, but momentum is more than a larger rate


# %% 2 solution
def middle_of(segments, variant):
    cut = np.array_split(np.arange(T), segments)
    states = [path[steps[len(steps) // 2]] for steps in cut]
    known = [
        Segment((Task("toy", toy_loss, {"theta": t}),), np.full(len(steps), rate), np.ones(12, bool))
        for t, steps in zip(states, cut, strict=True)
    ]
    bent = [Dense(hessian(objective)(t)) for t in states]
    return scores_of(known, bent, twelve, query_slope[None], mu, decay, variant)[:, 0].sum(0)


goal = np.corrcoef(source_of(24, "exponential"), package)[0, 1]
enough = next(n for n in range(1, 25) if np.corrcoef(middle_of(n, "exponential"), package)[0, 1] >= goal)


# %% 2 wrong
def middle_of(segments, variant):
    cut = np.array_split(np.arange(T), segments)
    states = [path[steps[len(steps) // 2] + 1] for steps in cut]  # where the middle step ends, not where it is taken
    known = [
        Segment((Task("toy", toy_loss, {"theta": t}),), np.full(len(steps), rate), np.ones(12, bool))
        for t, steps in zip(states, cut, strict=True)
    ]
    bent = [Dense(hessian(objective)(t)) for t in states]
    return scores_of(known, bent, twelve, query_slope[None], mu, decay, variant)[:, 0].sum(0)


goal = np.corrcoef(source_of(24, "exponential"), package)[0, 1]
enough = next(n for n in range(1, 25) if np.corrcoef(middle_of(n, "exponential"), package)[0, 1] >= goal)

# %% 3 solution
all_in = [replace(part, members=np.ones(N, bool)) for part in parts]
untold = scores_of(all_in, curvatures, staged_images, query_gradients, 0.9, 1e-3, "exponential").sum(0)
of_query = lds(untold, masks, stage_truth)[kept]
untold_lds = of_query[~kept_turned].mean(), of_query[kept_turned].mean()

# %% 3 wrong
all_in = [replace(part, members=stages[1]) for part in parts]  # every segment as if it were the second stage
untold = scores_of(all_in, curvatures, staged_images, query_gradients, 0.9, 1e-3, "exponential").sum(0)
of_query = lds(untold, masks, stage_truth)[kept]
untold_lds = of_query[~kept_turned].mean(), of_query[kept_turned].mean()

# %% 4 solution
from scipy.optimize import minimize_scalar

peak = minimize_scalar(lambda s: np.expm1(-s) * (s + 1) / s, bounds=(1e-3, 1e3), method="bounded")
largest, where = -peak.fun, peak.x

# %% 4 wrong
where = 1.0  # where the two regimes meet
largest = (1 - np.exp(-where)) * (where + 1) / where
