# %% 1 solution
sizes = [p.numel() for p in task.params.values()]
per_tensor = matrix(task, bed.train).double().square().split(sizes, dim=1)
last = (per_tensor[-1].sum(1) + per_tensor[-2].sum(1)).numpy()

# %% 1 wrong
sizes = [p.numel() for p in task.params.values()]
last = matrix(task, bed.train).double().square().split(sizes, dim=1)[-1].sum(1).numpy()  # the biases are missing

# %% 2 solution
aucs = {}
for share in (0.2, 0.8):
    of_draws = []
    for draw in range(draws):
        image = sets[(*main, draw)].rows // 10
        given, fours = true_labels[image].copy(), np.flatnonzero(true_labels[image] == 4)
        turned = np.random.default_rng([4, draw]).permutation(fours)[: round(share * len(fours))]
        given[turned] = 9
        rows, fold = 10 * image + given, np.arange(len(image)) % 5
        probs_of_folds = probabilities(train_on([rows[fold != f] for f in range(5)], [draw] * 5, early))
        p = probs_of_folds[fold, image, given]
        of_draws.append(roc_auc_score(np.isin(fours, turned), -np.log(p[fours])))
    aucs[share] = np.mean(of_draws)

# %% 2 wrong
aucs = {}
for share in (0.2, 0.8):
    of_draws = []
    for draw in range(draws):
        image = sets[(*main, draw)].rows // 10
        given, fours = true_labels[image].copy(), np.flatnonzero(true_labels[image] == 4)
        turned = np.random.default_rng([4, draw]).permutation(fours)[: round(share * len(fours))]
        given[turned] = 9
        rows, fold = 10 * image + given, np.arange(len(image)) % 5
        probs_of_folds = probabilities(train_on([rows[fold != f] for f in range(5)], [draw] * 5, early))
        p = probs_of_folds[fold, image, true_labels[image]]  # the loss of the true label, which nobody knows
        of_draws.append(roc_auc_score(np.isin(fours, turned), -np.log(p[fours])))
    aucs[share] = np.mean(of_draws)

# %% 3 solution
from dataclasses import replace

harm_auc = {}
for size in (10, 100, 400):
    of_draws = []
    for draw in range(draws):
        permuted = np.random.default_rng([bed.config["seed"], 24, draw]).permutation(len(images))
        clean = permuted[len(bed.documents) : len(bed.documents) + size]
        noisy_set = replace(sets[(*main, draw)], clean=10 * clean + true_labels[clean])
        suspicion_by = gradient_detectors(params_of[(*main, draw, early)], noisy_set, dampings)
        of_draws.append(roc_auc_score(noisy_set.flipped, suspicion_by["harm, EK-FAC"]))
    harm_auc[size] = np.mean(of_draws)

# %% 3 wrong
from dataclasses import replace

harm_auc = {}
for size in (10, 100, 400):
    of_draws = []
    for draw in range(draws):
        noisy_set = sets[(*main, draw)]
        noisy_set = replace(noisy_set, clean=noisy_set.rows[:size])  # training images, whose labels nobody has checked
        suspicion_by = gradient_detectors(params_of[(*main, draw, early)], noisy_set, dampings)
        of_draws.append(roc_auc_score(noisy_set.flipped, suspicion_by["harm, EK-FAC"]))
    harm_auc[size] = np.mean(of_draws)

# %% 4 solution
caught, wasted = [], []
for draw in range(draws):
    flipped = sets[(*main, draw)].flipped
    out = (-suspicion_of[(*main, draw, end)]["EK-FAC"]).argsort(kind="stable")[: 2 * flipped.sum()]
    caught.append(flipped[out].sum() / flipped.sum())
    wasted.append((~flipped[out]).sum() / (~flipped).sum())
caught, wasted = np.mean(caught), np.mean(wasted)

# %% 4 wrong
caught, wasted = [], []
for draw in range(draws):
    flipped = sets[(*main, draw)].flipped
    out = (-suspicion_of[(*main, draw, end)]["EK-FAC"]).argsort(kind="stable")[: 2 * flipped.sum()]
    caught.append(flipped[out].sum() / flipped.sum())
    wasted.append((~flipped[out]).mean())  # a share of what is dropped, not of the right labels
caught, wasted = np.mean(caught), np.mean(wasted)
