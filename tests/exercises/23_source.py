# %% 1 solution
rerun("unrolled_by_hand -= ", ("T, rate, mu, decay = 24, 0.4, 0.5, 0.01", "T, rate, mu, decay = 24, 0.05, 0.0, 0.01"))
rerun("def source_of(segments")

# %% 1 wrong
rerun("unrolled_by_hand -= ", ("T, rate, mu, decay = 24, 0.4, 0.5, 0.01", "T, rate, mu, decay = 24, 0.05, 0.5, 0.01"))
rerun("def source_of(segments")  # small steps, but momentum is more than a larger rate


# %% 2 solution
def middle_of(segments, variant):
    parts_ = np.array_split(np.arange(T), segments)
    at_ = [path[part[len(part) // 2]] for part in parts_]
    known = [
        Segment((Task("toy", toy_loss, {"theta": t}),), np.full(len(s), rate), np.ones(12, bool))
        for t, s in zip(at_, parts_, strict=True)
    ]
    curved_ = [Dense(hessian(loss)(t)) for t in at_]
    return scores_of(known, curved_, twelve, query_slope[None], mu, decay, variant)[:, 0].sum(0)


goal = np.corrcoef(source_of(24, "exponential"), package)[0, 1]
enough = next(n for n in range(1, 25) if np.corrcoef(middle_of(n, "exponential"), package)[0, 1] >= goal)


# %% 2 wrong
def middle_of(segments, variant):
    parts_ = np.array_split(np.arange(T), segments)
    at_ = [path[part[len(part) // 2] + 1] for part in parts_]  # where the middle step ends, not where it is taken
    known = [
        Segment((Task("toy", toy_loss, {"theta": t}),), np.full(len(s), rate), np.ones(12, bool))
        for t, s in zip(at_, parts_, strict=True)
    ]
    curved_ = [Dense(hessian(loss)(t)) for t in at_]
    return scores_of(known, curved_, twelve, query_slope[None], mu, decay, variant)[:, 0].sum(0)


goal = np.corrcoef(source_of(24, "exponential"), package)[0, 1]
enough = next(n for n in range(1, 25) if np.corrcoef(middle_of(n, "exponential"), package)[0, 1] >= goal)

# %% 3 solution
all_in = [replace(part, members=np.ones(N, bool)) for part in parts]
untold = scores_of(all_in, curved, both, matrix(tasks[-1], turned), 0.9, 1e-3, "exponential").sum(0)
of_query = lds(untold, masks, truth)[kept]
untold_lds = of_query[~odd].mean(), of_query[odd].mean()

# %% 3 wrong
all_in = [replace(part, members=stages[1]) for part in parts]  # every segment as if it were the second stage
untold = scores_of(all_in, curved, both, matrix(tasks[-1], turned), 0.9, 1e-3, "exponential").sum(0)
of_query = lds(untold, masks, truth)[kept]
untold_lds = of_query[~odd].mean(), of_query[odd].mean()

# %% 4 solution
from scipy.optimize import minimize_scalar

peak = minimize_scalar(lambda s: np.expm1(-s) * (s + 1) / s, bounds=(1e-3, 1e3), method="bounded")
largest, where = -peak.fun, peak.x

# %% 4 wrong
where = 1.0  # where the two regimes meet
largest = (1 - np.exp(-where)) * (where + 1) / where
