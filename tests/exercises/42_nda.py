# %% 1 solution
from scipy.stats import spearmanr

image, _, _ = pointed(0)
hard = np.bincount(image.flatten(), minlength=len(train["pixels"])) / image.numel()
w = nda.weights(task, train, take(queries, [0]), timesteps=t, patch=side)
alike = spearmanr(hard, w.sum((3, 4)).mean((0, 1))).statistic
# %% 1 wrong
from scipy.stats import spearmanr

w = nda.weights(task, train, take(queries, [0]), timesteps=t, patch=side)
soft = w.sum((3, 4)).mean((0, 1))
hard = torch.zeros_like(soft)
hard[soft.argmax()] = 1.0  # the first image takes all, not the first patch
hard, alike = hard.numpy(), spearmanr(hard, soft).statistic
# %% 2 solution
twice = {"pixels": torch.cat([few["pixels"], few["pixels"][:1]])}
alone = attribution.attribute("nda", task, few, one, timesteps=400, patch="image")[0, 0]
scores = attribution.attribute("nda", task, twice, one, timesteps=400, patch="image")[0]
together = scores[0] + scores[-1]
# %% 2 wrong
alone = attribution.attribute("nda", task, few, one, timesteps=400, patch="image")[0, 0]
together = 2 * alone  # the others give way
# %% 3 solution
from scipy.stats import spearmanr

repeated = {}
for patch in ("image", 5):
    options = {"timesteps": 200, "patch": patch}
    draws = [attribution.attribute("nda", task, train, chapter.test_queries, seed=s, **options) for s in (1, 2)]
    repeated[patch] = np.mean([spearmanr(a, b).statistic for a, b in zip(*draws, strict=True)])
# %% 3 wrong
from scipy.stats import spearmanr

repeated = {}
for patch in ("image", 5):  # all queries and images at once: between queries, not within
    options = {"timesteps": 200, "patch": patch}
    draws = [attribution.attribute("nda", task, train, chapter.test_queries, seed=s, **options) for s in (1, 2)]
    repeated[patch] = spearmanr(draws[0].ravel(), draws[1].ravel()).statistic
# %% 4 solution
from tda.evaluation.lds import lds as score_of

grey = replace(task, encode={"pixels": lambda batch: batch["pixels"].reshape(-1, *shape).mean(1, keepdim=True)})
by_grey = attribution.attribute("nda", grey, train, chapter.test_queries, timesteps=100, patch="image")
grey_lds = score_of(by_grey, half.subsets, half.outputs[:, :, chapter.test]).mean()
# %% 4 wrong
from tda.evaluation.lds import lds as score_of

grey = replace(task, encode={"pixels": lambda batch: batch["pixels"].reshape(-1, *shape)[:, :1]})  # the red channel
by_grey = attribution.attribute("nda", grey, train, chapter.test_queries, timesteps=100, patch="image")
grey_lds = score_of(by_grey, half.subsets, half.outputs[:, :, chapter.test]).mean()
