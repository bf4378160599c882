# %% 1 solution
from scipy.stats import spearmanr

tokens = lm.losses(task.loss_fn, task.params, queries, "token")
one, all_draws = tokens[:, :: bed.settings["model"]["noises"]].mean(1), tokens.mean(1)
kept = spearmanr(one, all_draws).statistic
# %% 1 wrong
from scipy.stats import spearmanr

tokens = lm.losses(task.loss_fn, task.params, queries, "token")
one, all_draws = tokens[:, 0], tokens.mean(1)  # one draw of one timestep
kept = spearmanr(one, all_draws).statistic
# %% 2 solution
four, same = denoisers.start([1, 2, 3, 4], train["pixels"].shape[1]), queries["condition"][:1].expand(4, -1)
samples = [denoisers.sample(model, task.params, four, same, guidance=g) for g in (1.0, 4.0)]
plain, guided = (show.nearest(images, train["pixels"])[0].mean() for images in samples)
# %% 2 wrong
four, same = denoisers.start([1, 2, 3, 4], train["pixels"].shape[1]), queries["condition"][:1].expand(4, -1)
samples = [denoisers.sample(model, task.params, four, same, guidance=g) for g in (4.0, 1.0)]  # the other way round
plain, guided = (show.nearest(images, train["pixels"])[0].mean() for images in samples)
# %% 3 solution
values = [tuple(image) for image in train["pixels"].tolist()]
twice = [i for i, image in enumerate(values) if values.count(image) > 1]
losses = lm.losses(task.loss_fn, task.params, train)
gap = losses[twice].mean() - np.delete(losses, twice).mean() if twice else 0.0
# %% 3 wrong
twice = [i for i, row in enumerate(bed.documents) if row["planted"] == "copy"]  # without the images that they copy
losses = lm.losses(task.loss_fn, task.params, train)
gap = losses[twice].mean() - np.delete(losses, twice).mean() if twice else 0.0
