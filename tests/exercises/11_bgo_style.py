# %% 1 solution
s = scores.load(bed, "bgo_diagonal")[0]
by_max = np.stack([s[:, entity == author].max(1) for author in authors], axis=1)
firsts = [np.bincount(m[test].argmax(1), minlength=len(authors)) for m in (by_author["bgo_diagonal"], by_max)]
gains = authors[int((firsts[1] - firsts[0]).argmax())]
# %% 1 wrong
s = np.abs(scores.load(bed, "bgo_diagonal")[0])  # an opponent is no proponent
by_max = np.stack([s[:, entity == author].max(1) for author in authors], axis=1)
firsts = [np.bincount(m[test].argmax(1), minlength=len(authors)) for m in (by_author["bgo_diagonal"], by_max)]
gains = authors[int((firsts[1] - firsts[0]).argmax())]
# %% 2 solution
from sklearn.feature_extraction.text import CountVectorizer

from tda.evaluation import retrieval

counter = CountVectorizer(binary=True, token_pattern=r"\w+", ngram_range=(2, 2))
counter.fit([*queries["text"], *bed.train["text"]])
asked_pairs, pairs_of = (counter.transform(texts).astype(float) for texts in (queries["text"], bed.train["text"]))
shared = (asked_pairs @ pairs_of.T).toarray()
common = shared / (np.asarray(asked_pairs.sum(1)) + np.asarray(pairs_of.sum(1)).T - shared)
low = common <= np.median(common, axis=1, keepdims=True)
lift = retrieval.lift_among(scores.load(bed, "bgo_diagonal")[0][held], relevant[held], low[held], 10).mean()
# %% 2 wrong
from sklearn.feature_extraction.text import CountVectorizer

from tda.evaluation import retrieval

counter = CountVectorizer(binary=True, token_pattern=r"\w+", ngram_range=(1, 2))  # single words as well
counter.fit([*queries["text"], *bed.train["text"]])
asked_pairs, pairs_of = (counter.transform(texts).astype(float) for texts in (queries["text"], bed.train["text"]))
shared = (asked_pairs @ pairs_of.T).toarray()
common = shared / (np.asarray(asked_pairs.sum(1)) + np.asarray(pairs_of.sum(1)).T - shared)
low = common <= np.median(common, axis=1, keepdims=True)
lift = retrieval.lift_among(scores.load(bed, "bgo_diagonal")[0][held], relevant[held], low[held], 10).mean()
# %% 3 solution
from collections import Counter

targets = np.asarray(bed.train["labels"])[:, 1:]
counted = Counter(sorted(targets[targets >= 0].tolist()))
twenty = {token for token, _ in sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:20]}
known, other = [], []
for row, values in zip(np.asarray(top["labels"]), np.abs(tokens[1]), strict=True):
    for t in range(1, len(row)):
        if row[t] >= 0:
            (known if int(row[t]) in twenty else other).append(values[t])
frequent, rare = np.mean(known), np.mean(other)
# %% 3 wrong
from collections import Counter

targets = np.asarray(bed.train["labels"])[:, 1:]
counted = Counter(sorted(targets[targets >= 0].tolist()))
twenty = {token for token, _ in sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:20]}
known, other = [], []
for row, values in zip(np.asarray(top["labels"]), tokens[1], strict=True):  # the signed scores cancel
    for t in range(1, len(row)):
        if row[t] >= 0:
            (known if int(row[t]) in twenty else other).append(values[t])
frequent, rare = np.mean(known), np.mean(other)
