# %% 1 solution
from scipy.stats import spearmanr

own = np.flatnonzero(of_set["inside"])
same = [i for i in own if asked["condition"][i, 0] == asked["condition"][own[0], 0]]
pair, alike = same[:2], {}
for name, options in {"image": {}, "sampler": {"samples": 4}}.items():
    rows = attribute("concept_trak", task, train, take(asked, pair), **options)
    alike[name] = spearmanr(*rows).statistic
# %% 1 wrong
from scipy.stats import spearmanr

own = np.flatnonzero(of_set["inside"])
same = [i for i in own if asked["condition"][i, 0] == asked["condition"][own[0], 0]]
pair, alike = same[:2], {}
rows = attribute("concept_trak", task, train, take(asked, pair))
alike["image"] = alike["sampler"] = spearmanr(*rows).statistic  # the states do not change by themselves
# %% 2 solution
scores = attribute("concept_trak", task, train, take(asked, [0]))[0]
opponents = np.argsort(scores, kind="stable")[:5]
share = relevant[0][0][opponents].mean()
# %% 2 wrong
scores = attribute("concept_trak", task, train, take(asked, [0]))[0]
opponents = np.argsort(np.abs(scores), kind="stable")[:5]  # the indifferent ones
share = relevant[0][0][opponents].mean()
# %% 3 solution
from tda.attribution.concept_trak import Options, query_gradients, train_gradients

how = {"inversion": False, "unit_norm": False}
rows = query_gradients(task, take(asked, slice(0, 5)), Options(**how, query_loss="loss"))
others = train_gradients(task, train, Options(**how, train_loss="loss").of_training())
mean_gradient = rows.mean(0)
mean_products = others @ mean_gradient
# %% 3 wrong
from tda.attribution.concept_trak import Options, query_gradients, train_gradients

how = {"inversion": False, "unit_norm": True}  # unit gradients: another question
rows = query_gradients(task, take(asked, slice(0, 5)), Options(**how, query_loss="loss"))
others = train_gradients(task, train, Options(**how, train_loss="loss").of_training())
mean_gradient = rows.mean(0)
mean_products = others @ mean_gradient
