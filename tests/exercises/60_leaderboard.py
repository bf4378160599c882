# parameters: {"profile": "tests/exercises/leaderboard.yaml"}

# %% 1 solution
people = frame[(frame.testbed == "people") & (frame.query_set == "held_out")]
columns_ = people.pivot(index="row_id", columns="metric", values="value")[["lds_half", "mrr"]].dropna()
places = columns_.rank(ascending=False)
most_moved = (places.lds_half - places.mrr).abs().idxmax()

# %% 1 wrong
people = frame[(frame.testbed == "people") & (frame.query_set == "held_out")]
columns_ = people.pivot(index="row_id", columns="metric", values="value")[["lds_half", "mrr"]].dropna()
places = columns_.rank(ascending=False)
most_moved = (places.lds_half + places.mrr).idxmin()  # good at both, which is not what was asked

# %% 2 solution
held_out = frame[(frame.metric == "lds_half") & (frame.query_set == "held_out") & (frame.ceiling > 0)]
best_share = {name: (part.value / part.ceiling).max() for name, part in held_out.groupby("testbed")}

# %% 2 wrong
held_out = frame[(frame.metric == "lds_half") & (frame.query_set == "held_out") & (frame.ceiling > 0)]
best_share = {name: part.value.max() / held_out.ceiling.max() for name, part in held_out.groupby("testbed")}

# %% 3 solution
line_ = claims.iloc[0]
mine = {"id": line_.id, "direction": "greater", "margin": (line_.value + line_.ci_low) / 2}
outside = line_.ci_low > mine["margin"]
mine["verdict"] = "supported" if outside else "not supported" if line_.ci_high <= mine["margin"] else "inconclusive"

# %% 3 wrong
line_ = claims.iloc[0]
mine = {"id": line_.id, "direction": "greater", "margin": (line_.value + line_.ci_low) / 2}
mine["verdict"] = "supported" if line_.value > mine["margin"] else "not supported"  # the estimate does not decide
