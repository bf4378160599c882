# %% 1 solution
sizes_ = [p.numel() for p in task.params.values()]
per_tensor = matrix(task, bed.train).double().square().split(sizes_, dim=1)
last = (per_tensor[-1].sum(1) + per_tensor[-2].sum(1)).numpy()

# %% 1 wrong
sizes_ = [p.numel() for p in task.params.values()]
last = matrix(task, bed.train).double().square().split(sizes_, dim=1)[-1].sum(1).numpy()  # the biases are missing

# %% 2 solution
aucs = {}
for share in (0.2, 0.8):
    each = []
    for draw in range(draws):
        image = sets[(*main, draw)]["rows"] // 10
        given, fours = truth[image].copy(), np.flatnonzero(truth[image] == 4)
        turned = np.random.default_rng([4, draw]).permutation(fours)[: round(share * len(fours))]
        given[turned] = 9
        rows, fold = 10 * image + given, np.arange(len(image)) % 5
        said_folds = answers(trained([rows[fold != f] for f in range(5)], [draw] * 5, early))
        p = said_folds[fold, image, given]
        each.append(roc_auc_score(np.isin(fours, turned), -np.log(p[fours])))
    aucs[share] = np.mean(each)

# %% 2 wrong
aucs = {}
for share in (0.2, 0.8):
    each = []
    for draw in range(draws):
        image = sets[(*main, draw)]["rows"] // 10
        given, fours = truth[image].copy(), np.flatnonzero(truth[image] == 4)
        turned = np.random.default_rng([4, draw]).permutation(fours)[: round(share * len(fours))]
        given[turned] = 9
        rows, fold = 10 * image + given, np.arange(len(image)) % 5
        said_folds = answers(trained([rows[fold != f] for f in range(5)], [draw] * 5, early))
        p = said_folds[fold, image, truth[image]]  # the loss of the true label, which nobody knows
        each.append(roc_auc_score(np.isin(fours, turned), -np.log(p[fours])))
    aucs[share] = np.mean(each)

# %% 3 solution
harm_auc = {}
for size in (10, 100, 400):
    each = []
    for draw in range(draws):
        s = sets[(*main, draw)]
        order_ = np.random.default_rng([bed.config["seed"], 24, draw]).permutation(len(images))
        clean = order_[len(bed.documents) : len(bed.documents) + size]
        found_ = by_gradients(runs[(*main, draw, early)][0], s | {"clean": 10 * clean + truth[clean]}, dampings)
        each.append(roc_auc_score(s["flipped"], found_["harm, EK-FAC"]))
    harm_auc[size] = np.mean(each)

# %% 3 wrong
harm_auc = {}
for size in (10, 100, 400):
    each = []
    for draw in range(draws):
        s = sets[(*main, draw)]
        part = s | {"clean": s["rows"][:size]}  # training images, whose labels nobody has checked
        found_ = by_gradients(runs[(*main, draw, early)][0], part, dampings)
        each.append(roc_auc_score(s["flipped"], found_["harm, EK-FAC"]))
    harm_auc[size] = np.mean(each)

# %% 4 solution
caught, wasted = [], []
for draw in range(draws):
    flipped = sets[(*main, draw)]["flipped"]
    out = (-suspicion[(*main, draw, end)]["EK-FAC"]).argsort(kind="stable")[: 2 * flipped.sum()]
    caught.append(flipped[out].sum() / flipped.sum())
    wasted.append((~flipped[out]).sum() / (~flipped).sum())
caught, wasted = np.mean(caught), np.mean(wasted)

# %% 4 wrong
caught, wasted = [], []
for draw in range(draws):
    flipped = sets[(*main, draw)]["flipped"]
    out = (-suspicion[(*main, draw, end)]["EK-FAC"]).argsort(kind="stable")[: 2 * flipped.sum()]
    caught.append(flipped[out].sum() / flipped.sum())
    wasted.append((~flipped[out]).mean())  # a share of what is dropped, not of the right labels
caught, wasted = np.mean(caught), np.mean(wasted)
