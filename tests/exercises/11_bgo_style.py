# %% 1 solution
scores = chapter.scores("bgo_diagonal")
by_max = np.stack([scores[:, author_of == author].max(1) for author in authors], axis=1)
firsts = [np.bincount(m[test].argmax(1), minlength=len(authors)) for m in (by_author["bgo_diagonal"], by_max)]
gains = authors[int((firsts[1] - firsts[0]).argmax())]
# %% 1 wrong
scores = np.abs(chapter.scores("bgo_diagonal"))  # an opponent is no proponent
by_max = np.stack([scores[:, author_of == author].max(1) for author in authors], axis=1)
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
lift = retrieval.lift_among(chapter.scores("bgo_diagonal")[held_out], relevant[held_out], low[held_out], 10).mean()
# %% 2 wrong
from sklearn.feature_extraction.text import CountVectorizer

from tda.evaluation import retrieval

counter = CountVectorizer(binary=True, token_pattern=r"\w+", ngram_range=(1, 2))  # single words as well
counter.fit([*queries["text"], *bed.train["text"]])
asked_pairs, pairs_of = (counter.transform(texts).astype(float) for texts in (queries["text"], bed.train["text"]))
shared = (asked_pairs @ pairs_of.T).toarray()
common = shared / (np.asarray(asked_pairs.sum(1)) + np.asarray(pairs_of.sum(1)).T - shared)
low = common <= np.median(common, axis=1, keepdims=True)
lift = retrieval.lift_among(chapter.scores("bgo_diagonal")[held_out], relevant[held_out], low[held_out], 10).mean()
# %% 3 solution
from collections import Counter

targets = np.asarray(bed.train["labels"])[:, 1:]
counted = Counter(sorted(targets[targets >= 0].tolist()))
twenty = {token for token, _ in sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:20]}
of_frequent, of_rare = [], []
for row, values in zip(np.asarray(top["labels"]), np.abs(top_tokens), strict=True):
    for t in range(1, len(row)):
        if row[t] >= 0:
            (of_frequent if int(row[t]) in twenty else of_rare).append(values[t])
frequent, rare = np.mean(of_frequent), np.mean(of_rare)
# %% 3 wrong
from collections import Counter

targets = np.asarray(bed.train["labels"])[:, 1:]
counted = Counter(sorted(targets[targets >= 0].tolist()))
twenty = {token for token, _ in sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:20]}
of_frequent, of_rare = [], []
for row, values in zip(np.asarray(top["labels"]), top_tokens, strict=True):  # the signed scores cancel
    for t in range(1, len(row)):
        if row[t] >= 0:
            (of_frequent if int(row[t]) in twenty else of_rare).append(values[t])
frequent, rare = np.mean(of_frequent), np.mean(of_rare)
