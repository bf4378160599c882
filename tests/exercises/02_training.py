# %% 1 solution
plain = runs
overrides = {"testbeds": {"people": {"training": {"weight_decay": 1.0}}}}
rerun("chapter = Chapter(")
rerun("report = models.train_base")
old, new = (
    [[run["final_train_loss"], run["final_held_out_loss"], run["knowledge"]["held_out"]] for run in which]
    for which in (plain, runs)
)
changes = list(np.mean(new, axis=0) - np.mean(old, axis=0))
# %% 1 wrong
plain = runs
overrides = {"testbeds": {"people": {"training": {"weight_decay": 1.0}}}}
rerun("chapter = Chapter(")
rerun("report = models.train_base")
old, new = (
    [[run["final_train_loss"], run["final_held_out_loss"], run["knowledge"]["held_out"]] for run in which]
    for which in (plain, runs)
)
changes = list(np.mean(old, axis=0) - np.mean(new, axis=0))  # old less new
# %% 2 solution
plain, corpus, epochs = runs, bed.settings["corpus"], bed.settings["training"]["epochs"]
fewer = {"docs_min": corpus["docs_min"] // 2, "docs_max": corpus["docs_max"] // 2}
overrides = {"testbeds": {"people": {"corpus": fewer, "training": {"epochs": 2 * epochs}}}}
rerun("chapter = Chapter(")
rerun("report = models.train_base")
storing, extracting = (
    np.mean([run["knowledge"][kind] for run in plain]) - np.mean([run["knowledge"][kind] for run in runs])
    for kind in ("trained", "held_out")
)
# %% 2 wrong
plain, corpus = runs, bed.settings["corpus"]
fewer = {"docs_min": corpus["docs_min"] // 2, "docs_max": corpus["docs_max"] // 2}
overrides = {"testbeds": {"people": {"corpus": fewer}}}  # half of the updates as well
rerun("chapter = Chapter(")
rerun("report = models.train_base")
storing, extracting = (
    np.mean([run["knowledge"][kind] for run in plain]) - np.mean([run["knowledge"][kind] for run in runs])
    for kind in ("trained", "held_out")
)
# %% 3 solution
kept = models.load_task(bed).run.checkpoints
by_rate = kept[-1].lr / sum(c.lr for c in kept)
by_sum = kept[-1].lr_sum / sum(c.lr_sum for c in kept)
# %% 3 wrong
kept = models.load_task(bed).run.checkpoints
by_rate = kept[-1].lr / max(c.lr for c in kept)  # a share of the largest, not of all
by_sum = kept[-1].lr_sum / max(c.lr_sum for c in kept)
# %% 4 solution
from tda.testbeds import load

right = {}
for epochs in (10, 200):
    other = load("digits_mlp", profile, {"testbeds": {"digits_mlp": {"training": {"epochs": epochs}}}})
    right[epochs] = np.mean([run["knowledge"]["trained"] for run in models.train_base(other)["runs"]])
short, long = right[10], right[200]
# %% 4 wrong
from tda.testbeds import load

right = {}
for epochs in (10, 200):
    other = load("digits_mlp", profile, {"testbeds": {"digits_mlp": {"training": {"epochs": epochs}}}})
    right[epochs] = np.mean([run["knowledge"]["held_out"] for run in models.train_base(other)["runs"]])
short, long = right[10], right[200]  # held-out images carry no flips
