# %% 1 solution
half, signed = chapter.bank("half"), part["gradient_dot"]
absolute, positive = np.abs(signed), np.maximum(signed, 0)
tried = {"signed": signed, "absolute": absolute, "positive": positive}
found = lds_intervals(tried, half.subsets, half.outputs[:, :, chapter.test], chapter.clusters, references=["signed"])
differences = {name: found[name].difference["signed"] for name in ("absolute", "positive")}
# %% 1 wrong
signed = part["gradient_dot"]  # `truth` is left over from the loop above: the last design, not `half`
absolute, positive = np.abs(signed), np.maximum(signed, 0)
tried = {"signed": signed, "absolute": absolute, "positive": positive}
found = lds_intervals(tried, truth.subsets, truth.outputs[:, :, chapter.test], chapter.clusters, references=["signed"])
differences = {name: found[name].difference["signed"] for name in ("absolute", "positive")}
# %% 2 solution
person, planted = np.array(bed.documents["entity"]), np.array(bed.documents["planted"])
about = np.array([[row["entity"] == name for name in person] for row in rows])
negative = {}
for row_id in ("gradient_dot", "tracincp"):
    s = chapter.scores(row_id)
    negative[row_id] = [(s[mask] < 0).mean() for mask in (about & (planted == "contradiction"), about, s == s)]
# %% 2 wrong
person, planted = np.array(bed.documents["entity"]), np.array(bed.documents["planted"])
about = np.array([[row["entity"] == name for name in person] for row in rows])
negative = {}
for row_id in ("gradient_dot", "tracincp"):
    s = chapter.scores(row_id)
    against = s[:, planted == "contradiction"]  # about anybody
    negative[row_id] = [(against < 0).mean(), (s[about] < 0).mean(), (s < 0).mean()]
# %% 3 solution
kept = task.run.checkpoints
by_rate = sum(c.lr * dot(c.params) for c in kept).numpy()
own, summed = np.array([c.lr for c in kept]), np.array([c.lr_sum for c in kept])
loser = int(np.argmin(own / own.sum() - summed / summed.sum()))
# %% 3 wrong
kept = task.run.checkpoints
by_rate = sum(c.lr * dot(c.params) for c in kept).numpy()
loser = int(np.argmax([c.lr for c in kept]))  # it has the largest rate, so it gains
