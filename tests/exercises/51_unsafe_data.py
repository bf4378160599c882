# %% 1 solution
order = (-found[1, "DRA gradients, both"]["marker"]).argsort(kind="stable")
needed = int(np.flatnonzero(all_draws[1].world.planted["marker"][order])[-1]) + 1

# %% 1 wrong
order = (-found[1, "DRA gradients, both"]["marker"]).argsort(kind="stable")
needed = int(np.flatnonzero(all_draws[1].world.planted["marker"][order])[-1])  # places count from 1

# %% 2 solution
from collections import Counter

top = scores.most_suspicious(found[1, "TF-IDF"]["marker"], budget)
false_alarms = {str(k): n for k, n in Counter(all_draws[1].world.kinds[top]).items() if k != "marker"}

# %% 2 wrong
from collections import Counter

top = scores.most_suspicious(found[1, "TF-IDF"]["marker"], budget)
false_alarms = {str(k): n for k, n in Counter(all_draws[1].world.kinds[top]).items()}  # those that are right, too

# %% 3 solution
one = all_draws[1]
asked_rows = one.audit().targets["marker"]
everything = scores.denoised(hidden(one.task, one.world.train), hidden(one.task, asked_rows), "both", 1.0)

# %% 3 wrong
one = all_draws[1]
asked_rows = one.audit().targets["marker"]
everything = scores.denoised(hidden(one.task, one.world.train), hidden(one.task, asked_rows), "selection", 1.0)

# %% 4 solution
from sklearn.metrics import average_precision_score

crossed = average_precision_score(all_draws[1].world.planted["bias"], found[1, "DRA gradients, both"]["marker"])

# %% 4 wrong
from sklearn.metrics import average_precision_score

crossed = average_precision_score(all_draws[1].world.planted["bias"], found[1, "DRA gradients, both"]["bias"])
